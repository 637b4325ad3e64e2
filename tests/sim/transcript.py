"""Raft messages in words, for transcripts that a person reads."""

from __future__ import annotations

from collections.abc import Iterator

from mailraft.internal.v1 import raft_pb2
from mailraft.node.interfaces import node_of


def describe(frame: raft_pb2.ExchangeRequest, *, groups: bool = True) -> Iterator[str]:
    """A line per envelope; heartbeats are left out."""
    for envelope in frame.envelopes:
        group = f"g{envelope.group} " if groups else ""
        yield (
            f"n{node_of(envelope.from_replica)} -> n{node_of(envelope.to_replica)} "
            f"{group}t{envelope.term} {_body(envelope)}"
        )


def _body(envelope: raft_pb2.Envelope) -> str:
    kind = envelope.WhichOneof("body")
    match kind:
        case "request_vote":
            vote = envelope.request_vote
            name = "asks for a pre-vote" if vote.pre_vote else "asks for a vote"
            handed = ", by transfer" if vote.transfer else ""
            return f"{name}, log ends at {vote.last_log_index}/t{vote.last_log_term}{handed}"
        case "vote_reply":
            vote_reply = envelope.vote_reply
            name = "pre-vote" if vote_reply.pre_vote else "vote"
            return f"gives its {name}" if vote_reply.granted else f"refuses its {name}"
        case "append_entries":
            append = envelope.append_entries
            what = " ".join(f"{entry.index}/t{entry.term}" for entry in append.entries)
            return (
                f"appends [{what}] behind {append.prev_log_index}/t{append.prev_log_term}, "
                f"commit {append.commit_index}"
            )
        case "append_reply":
            reply = envelope.append_reply
            if reply.success:
                return f"has up to {reply.match_index}, commit {reply.commit_index}"
            return f"refuses, wants {reply.retry_index}"
        case "read_index_request":
            return "asks for a read index"
        case "read_index_reply":
            return f"answers read index {envelope.read_index_reply.index}"
        case _:
            return {
                "term_notice": "tells its term",
                "timeout_now": "hands over: start an election now",
                "confirm_leader": "asks: is this term still yours?",
                "confirm_reply": "confirms the term",
                "recall_request": "asks what it may have forgotten",
                "recall_reply": "answers what it knows",
            }.get(kind or "", str(kind))
