"""Which replica a request goes to next. Pure.

A read that may go anywhere goes to one of two replicas that are drawn, the cheaper one: "the power
of two choices" (Mitzenmacher 2001) spreads nearly as well as asking the cheapest of all, and never
sends everybody to the same. One of the two is in the own zone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailraft.router.attempts import Attempts, Target
from mailraft.router.loads import Loads
from mailraft.router.table import CLUSTER, Place, RoutingTable

# A replica in another zone is asked when one in the own zone costs so many times as much.
FAR = 3.0


def choose(
    attempts: Attempts,
    table: RoutingTable,
    loads: Loads,
    *,
    suspect: Callable[[Place], bool],
    zone: str,
) -> Place | None:
    """The best place of those that the round has not tried; None when it has tried them all.

    suspect: it failed a short while ago, and is asked last.
    """
    goal, leader = attempts.goal, table.leader(attempts.goal.shard)
    known = table.topology.places(goal.shard)
    if goal.target is Target.LEADER and leader is not None and not attempts.tried:
        found = leader
        for each in known:
            if each.address == leader.address:
                found = each
                break
        if found.voter and not suspect(found):
            return found  # as nearly always
    if goal.target is Target.EXACT:
        known = tuple(place for place in known if place.replica_id == goal.replica_id)
    else:
        known = tuple(place for place in known if place.voter)
        if leader is not None and all(leader.address != place.address for place in known):
            known = (*known, leader)  # known by its address before the map is
    untried = [place for place in known if place.address not in attempts.tried]
    free = [place for place in untried if not suspect(place)] or untried
    preferred = _preferred(attempts, leader)
    for place in free:
        if preferred(place):
            return place
    if goal.target is Target.LEADER:
        return attempts.chance.choice(free) if free else None
    return cheaper_of_two(free, attempts, loads, zone)


def _preferred(attempts: Attempts, leader: Place | None) -> Callable[[Place], bool]:
    """Who is asked whatever it costs: the leader, or a replica that is further ahead."""
    to_leader = attempts.goal.target is Target.LEADER or attempts.goal.shard == CLUSTER
    if leader is not None and (to_leader or attempts.sent_to_leader):
        return lambda place: place.address == leader.address
    return lambda place: bool(place.replica_id) and place.replica_id == attempts.fresher


def cheaper_of_two(
    places: Sequence[Place], attempts: Attempts, loads: Loads, zone: str
) -> Place | None:
    """None without places. zone "" : none is near."""
    near = [place for place in places if zone and place.zone == zone]
    far = [place for place in places if place not in near]
    chance = attempts.chance
    if near and far:
        drawn = [chance.choice(near), chance.choice(far)]
    else:
        drawn = chance.sample(places, min(2, len(places)))
    return min(
        drawn,
        key=lambda place: loads.cost(place.address) * (FAR if near and place in far else 1.0),
        default=None,
    )
