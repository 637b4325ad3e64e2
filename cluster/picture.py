"""How a cluster does at one moment, and the names of what is in it: for commands."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cached_property

from mailraft.cluster.errors import ClusterError, ExitCode
from mailraft.cluster.observer import Maps, Observer
from mailraft.cluster.operator import Operator
from mailraft.node.interfaces import META_GROUP
from mailraft.v1 import admin_pb2, cluster_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials

# The meta group's leader answers at once. Without one, every node is asked instead.
OVERVIEW_DEADLINE_S = 4.0
_REMOVED = cluster_pb2.NODE_STATE_REMOVED
_WARNING, _CRITICAL = admin_pb2.ALARM_SEVERITY_WARNING, admin_pb2.ALARM_SEVERITY_CRITICAL


class NoSuchThingError(ClusterError):
    """A node or shard that was named is not there."""

    exit_code = ExitCode.NOT_FOUND
    reason = "NOT_FOUND"


@dataclasses.dataclass(frozen=True)  # without slots: it remembers what is looked up often
class Picture:
    """What GetClusterStatus told, or what the nodes told one by one."""

    told: admin_pb2.GetClusterStatusResponse

    @property
    def word(self) -> str:
        """OK; DEGRADED: all is served, with less to spare; UNAVAILABLE: some is not."""
        if any(alarm.severity == _CRITICAL for alarm in self.told.alarms):
            return "UNAVAILABLE"
        return "DEGRADED" if self.told.alarms else "OK"

    @property
    def exit_code(self) -> ExitCode:
        codes = {"OK": ExitCode.OK, "DEGRADED": ExitCode.FAILED}
        return codes.get(self.word, ExitCode.UNAVAILABLE)

    @property
    def summary(self) -> str:
        nodes = f"{sum(each.reachable for each in self.nodes)}/{len(self.nodes)}"
        return f"{self.word} epoch={self.told.epoch} nodes={nodes} {self.shard_counts}"

    @property
    def shard_counts(self) -> str:
        under = sum(each.under_replicated for each in self.shards)
        headless = sum(not each.available for each in self.shards)
        return f"shards={len(self.shards)} under_replicated={under} no_leader={headless}"

    @cached_property
    def nodes(self) -> list[cluster_pb2.NodeStatus]:
        """Those that have not left."""
        return [each for each in self.told.nodes if each.node.state != _REMOVED]

    @cached_property
    def shards(self) -> list[cluster_pb2.ShardStatus]:
        """Those of mail."""
        return [each for each in self.told.shards if each.shard.id != META_GROUP]

    def name(self, node: int) -> str:
        return self._names.get(node, f"node {node}")

    def node(self, text: str) -> cluster_pb2.NodeStatus:
        """By name or number. Raises NoSuchThingError."""
        by_name = {each.node.name: each for each in self.nodes}
        by_number = {str(each.node.id): each for each in self.nodes}
        found = by_name.get(text) or by_number.get(text)
        if found is None:
            there = " ".join(by_name) or "none"
            raise NoSuchThingError(f"there is no node {text!r}", f"there are {there}")
        return found

    def shard(self, number: int) -> cluster_pb2.ShardStatus:
        """0: the meta group. Raises NoSuchThingError."""
        for each in self.told.shards:
            if each.shard.id == number:
                return each
        raise NoSuchThingError(f"there is no shard {number}", "list them: mailraft shard list")

    @cached_property
    def _names(self) -> dict[int, str]:
        return {each.node.id: each.node.name for each in self.told.nodes}


async def look(operator: Operator) -> Picture:
    """As the meta group's leader sees it. Raises MailraftError."""
    return Picture(await operator.status())


async def look_around(server: str, credentials: AnyCredentials) -> Picture:
    """The same; while nobody leads the meta group, as the nodes tell it one by one."""
    async with Operator(server, credentials, deadline_s=OVERVIEW_DEADLINE_S) as operator:
        try:
            return await look(operator)
        except errors.MailraftError as error:
            cluster_map, reason = await operator.map(), error.message
    observer = Observer(cluster_map, server, credentials)
    try:
        there = [node.id for node in cluster_map.nodes if node.state != _REMOVED]
        return Picture(_gathered(cluster_map, await observer.maps(there), reason))
    finally:
        await observer.close()


def _gathered(
    cluster_map: cluster_pb2.ClusterMap, maps: Maps, reason: str
) -> admin_pb2.GetClusterStatusResponse:
    leaders = Observer.newest(maps)
    led = Counter(hint.node_id for hint in leaders.values())
    held = Counter(each.node_id for shard in cluster_map.shards for each in shard.replicas)
    told = admin_pb2.GetClusterStatusResponse(
        cluster_id=cluster_map.cluster_id, epoch=cluster_map.epoch
    )
    if cluster_map.HasField("meta"):
        text = f"nobody keeps the cluster map: {reason}"
        told.alarms.add(id="no-meta-leader", severity=_WARNING, message=text, shards=[META_GROUP])
    headless = [shard.id for shard in cluster_map.shards if shard.id not in leaders]
    if headless:
        text = f"{len(headless)} shards lack a leader"
        told.alarms.add(id="no-leader", severity=_CRITICAL, message=text, shards=headless)
    for node in cluster_map.nodes:
        up = maps.get(node.id) is not None
        told.nodes.add(node=node, reachable=up, replicas=held[node.id], leaders=led[node.id])
        if not up and node.state != _REMOVED:
            told.alarms.add(
                id=f"node-silent/{node.id}",
                severity=_WARNING,
                message=f"{node.name} does not answer",
                node_id=node.id,
            )
    for shard in cluster_map.shards:
        status = told.shards.add(shard=shard, available=shard.id in leaders)
        status.under_replicated = any(maps.get(each.node_id) is None for each in shard.replicas)
        if shard.id in leaders:
            status.shard.leader.CopyFrom(leaders[shard.id])
        else:
            status.shard.ClearField("leader")
    return told
