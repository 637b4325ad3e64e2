"""Leaders whose wall clock is off stamp nothing and hand over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mailraft.internal.v1 import raft_pb2
from mailraft.node.clocks import HEARD_S_MAX, SKEW_MS_MAX, PeerClocks
from mailraft.node.peers import SESSIONS_KEPT, _Sessions
from mailraft.wire import errors
from three_nodes import Nodes, all_up, until

OWN_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Clocks(SimpleNamespace):
    """Of one node, set by hand."""

    def __init__(self) -> None:
        self.wall, self.now = OWN_MS, 100.0
        self.peers = PeerClocks(lambda: self.wall, lambda: self.now)


@pytest.mark.parametrize(
    ("ahead_ms", "skew_ms"),
    [
        ((), 0),
        ((HOUR_MS,), 0),  # either of the two
        ((HOUR_MS, 0), 0),
        ((HOUR_MS, HOUR_MS), -HOUR_MS),
        ((HOUR_MS, -HOUR_MS), 0),
        ((-HOUR_MS, -HOUR_MS, 0, 0), 0),
        ((-HOUR_MS, -HOUR_MS, -HOUR_MS, 0), HOUR_MS),
        ((-HOUR_MS, -HOUR_MS, 0), 0),
    ],
)
def test_the_median_tells_whose_clock_is_off(ahead_ms: tuple[int, ...], skew_ms: int) -> None:
    """A majority has to disagree with ours."""
    clocks = Clocks()
    for peer, offset_ms in enumerate(ahead_ms, 2):
        clocks.peers.heard(peer, OWN_MS + offset_ms)
    assert clocks.peers.skew_ms() == skew_ms
    assert clocks.peers.off is (abs(skew_ms) > SKEW_MS_MAX)


def test_a_jump_is_seen_at_the_next_stamp() -> None:
    """Before any heartbeat: the peers' clocks are carried on meanwhile."""
    clocks = Clocks()
    for peer in (2, 3):
        clocks.peers.heard(peer, OWN_MS)
    clocks.wall, clocks.now = OWN_MS + 5_000, 105.0
    assert clocks.peers.stamp_ms() == OWN_MS + 5_000
    clocks.wall += HOUR_MS
    with pytest.raises(errors.NoLeaderError, match="3600 s off"):
        clocks.peers.stamp_ms()


def test_peers_that_are_silent_or_do_not_tell_have_no_say() -> None:
    """A node alone goes by its own clock."""
    clocks = Clocks()
    for peer in (2, 3):
        clocks.peers.heard(peer, 0)
    assert not clocks.peers.off
    for peer in (2, 3):
        clocks.peers.heard(peer, OWN_MS + HOUR_MS)
    assert clocks.peers.off
    clocks.now += HEARD_S_MAX + 0.1
    assert not clocks.peers.off


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    async with all_up(tmp_path) as found:
        yield found


async def test_a_leader_an_hour_ahead_gives_its_shards_away(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses at once to stamp, and another leads soon; back in time, it may stamp again."""
    ahead = nodes.leader
    server = nodes.running[ahead]
    await asyncio.sleep(0.3)  # heartbeats of both peers
    right = server.wall_ms
    monkeypatch.setattr(server._clocks, "_wall_ms", lambda: right() + HOUR_MS)
    with pytest.raises(errors.NoLeaderError):
        server.stamp_ms()
    await until(lambda: nodes.leader not in (0, ahead))
    monkeypatch.setattr(server._clocks, "_wall_ms", right)
    assert server.stamp_ms()


def test_sessions_count_as_they_come_whatever_the_clock_of_the_peer() -> None:
    """A peer that was set back is heard at once; both streams of a session have one number."""

    def number(peer: int, session: int) -> int:
        return sessions.number(raft_pb2.Hello(from_node=peer, session=session))

    sessions = _Sessions()
    before = number(2, OWN_MS)
    back = number(2, OWN_MS - HOUR_MS)
    assert back > before
    assert number(2, OWN_MS - HOUR_MS) == back
    assert number(3, OWN_MS) not in (before, back)
    for session in range(SESSIONS_KEPT):
        number(4, session)
    assert len(sessions._numbers) == SESSIONS_KEPT
