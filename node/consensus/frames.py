"""Envelopes packed into frames of bounded size."""

from __future__ import annotations

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import NodeNumber

# One frame of a peer stream carries at most this much, or one larger envelope.
FRAME_BYTES_MAX = 2 * 1024 * 1024


class Frames:
    """Envelopes packed into frames of bounded size, in order, per peer."""

    def __init__(self) -> None:
        self.done: list[tuple[NodeNumber, raft_pb2.ExchangeRequest]] = []
        self._open: dict[NodeNumber, tuple[raft_pb2.ExchangeRequest, int]] = {}

    def open(self, peer: NodeNumber) -> raft_pb2.ExchangeRequest:
        frame = self._open.get(peer)
        return frame[0] if frame is not None else self._begin(peer, 0)

    def add(self, peer: NodeNumber, envelope: raft_pb2.Envelope) -> None:
        size_bytes = envelope.ByteSize()
        frame, used_bytes = self._open.get(peer, (None, 0))
        if frame is None or used_bytes + size_bytes > FRAME_BYTES_MAX:
            frame, used_bytes = self._begin(peer, 0), 0
        frame.envelopes.append(envelope)
        self._open[peer] = (frame, used_bytes + size_bytes)

    def _begin(self, peer: NodeNumber, used_bytes: int) -> raft_pb2.ExchangeRequest:
        frame = raft_pb2.ExchangeRequest()
        self.done.append((peer, frame))
        self._open[peer] = (frame, used_bytes)
        return frame
