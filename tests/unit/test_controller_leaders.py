"""Who should lead: nobody on a node that would keep callers waiting, or refuse them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailraft.cluster.control.observed import FLUSH_SLOW_MS, HandOver, Observed
from mailraft.cluster.control.plan import plan
from mailraft.internal.v1 import control_pb2
from mailraft.node.clocks import SKEW_MS_MAX
from seen_cluster import seen

LEADS = 1


def _slow_disk(report: control_pb2.ReportResponse) -> None:
    report.flush_ms = FLUSH_SLOW_MS + 1


def _full_disk(report: control_pb2.ReportResponse) -> None:
    report.disk_full = True


def _clock_off(report: control_pb2.ReportResponse) -> None:
    report.clock_ahead_ms = SKEW_MS_MAX + 1


def _settled(trouble: Callable[[control_pb2.ReportResponse], None], *nodes: int) -> Observed:
    """Node 1 leads everything, with followers that could take over; these nodes are in trouble."""
    before = seen()
    for report in before.reports.values():
        for replica in report.replicas:
            replica.configuration_committed = True
            for progress in replica.progress:
                progress.match_index = replica.last_index
            members = [replica.replica_id, *(each.replica_id for each in replica.progress)]
            replica.configuration.voters.extend(sorted(members))
    for node in nodes:
        trouble(before.reports[node])
    return before


def _hand_overs(observed: Observed) -> list[HandOver]:
    return [each for each in plan(observed) if isinstance(each, HandOver)]


@pytest.mark.parametrize("trouble", [_slow_disk, _full_disk, _clock_off])
def test_a_node_in_trouble_hands_everything_over(
    trouble: Callable[[control_pb2.ReportResponse], None],
) -> None:
    """All groups that it leads, the meta group among them, to nodes that are well."""
    before = _settled(trouble, LEADS)
    made = _hand_overs(before)
    assert {each.group for each in made} == {group.id for group in before.groups}
    assert all(each.node == LEADS and each.to >> 32 != LEADS for each in made)


@pytest.mark.parametrize("trouble", [_slow_disk, _full_disk, _clock_off])
def test_a_node_in_trouble_is_given_nothing(
    trouble: Callable[[control_pb2.ReportResponse], None],
) -> None:
    """Leaders are spread over the others."""
    made = _hand_overs(_settled(trouble, 2))
    assert made
    assert all(each.to >> 32 == 3 for each in made)


def test_where_all_are_slow_it_stays_as_it_is() -> None:
    """A slow leader is better than none."""
    assert _hand_overs(_settled(_slow_disk, 1, 2, 3)) == []
