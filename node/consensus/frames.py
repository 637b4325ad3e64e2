"""Envelopes packed into frames of bounded size."""

from __future__ import annotations

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import NodeNumber

# One frame of a peer stream carries at most this much, or one larger envelope.
FRAME_BYTES_MAX = 2 * 1024 * 1024


def is_bulk(frame: raft_pb2.ExchangeRequest) -> bool:
    """Row 13: whether it carries appends, and so may wait behind bodies. Nothing else is in it."""
    return bool(frame.envelopes) and frame.envelopes[0].HasField("append_entries")


class Frames:
    """Envelopes packed into frames of bounded size, in order, per peer: appends apart from what
    must never wait behind them (row 13). No frame holds both.
    """

    def __init__(self) -> None:
        self.done: list[tuple[NodeNumber, raft_pb2.ExchangeRequest]] = []
        self._open: dict[tuple[NodeNumber, bool], tuple[raft_pb2.ExchangeRequest, int]] = {}

    def open(self, peer: NodeNumber) -> raft_pb2.ExchangeRequest:
        """A frame that holds no appends."""
        frame = self._open.get((peer, False))
        return frame[0] if frame is not None else self._begin(peer, bulk=False)

    def add(self, peer: NodeNumber, envelope: raft_pb2.Envelope) -> None:
        size_bytes = envelope.ByteSize()
        bulk = envelope.HasField("append_entries")
        frame, used_bytes = self._open.get((peer, bulk), (None, 0))
        if frame is None or used_bytes + size_bytes > FRAME_BYTES_MAX:
            frame, used_bytes = self._begin(peer, bulk=bulk), 0
        frame.envelopes.append(envelope)
        self._open[peer, bulk] = (frame, used_bytes + size_bytes)

    def _begin(self, peer: NodeNumber, *, bulk: bool) -> raft_pb2.ExchangeRequest:
        frame = raft_pb2.ExchangeRequest()
        self.done.append((peer, frame))
        self._open[peer, bulk] = (frame, 0)
        return frame
