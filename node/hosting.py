"""Which replicas this node hosts: those of the map at start, and as the map changes.

A replica that is placed here gets an empty log, and its leader sends it the rest. One that the map
places here no more is removed with all its rows. The map tells members only after the group itself
has committed them, so nobody is removed that still counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from mailraft.node import forcing
from mailraft.node.consensus.host import Host
from mailraft.node.engine.errors import CorruptionError
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    META_GROUP,
    ClusterView,
    Configuration,
    GroupId,
    LogCorruptError,
    ReplicaId,
    StateMachine,
    node_of,
)
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.node.runtime import Runtime, now_s
from mailraft.node.shard import Replica

log = logging.getLogger(__name__)


class Hosting:
    """Opens and removes replicas; `replicas` is shared with who serves them.

    meta: the state machine of the meta group; without one that group is not hosted here.
    """

    def __init__(
        self,
        view: ClusterView,
        store: Store,
        host: Host,
        runtime: Runtime,
        replicas: dict[GroupId, Replica],
        meta: StateMachine | None,
        *,
        rebuilds: bool = False,
    ) -> None:
        """rebuilds: the store is new in place of one that was damaged."""
        self._rebuilds = rebuilds
        self._view, self._store, self._host, self._runtime = view, store, host, runtime
        self._replicas, self._meta = replicas, meta

    def start(self) -> None:
        """Open what is on disk here, and create what the map places here. Removes nothing: the map
        that a node starts with may be old.
        """
        for group, (replica, configuration) in self._wanted().items():
            if group not in self._held():
                self._create(group, replica, configuration)
        for group, replica in self._held().items():
            if group != META_GROUP or self._meta is not None:
                self._open(group, replica)
        self._rebuilds = False  # what is placed here later was not here before
        self._adopted()

    def adopt(self) -> None:
        """Make what is hosted here what a newer map says. Between two turns of the runtime only."""
        wanted = self._wanted()
        for group, held in self._held().items():
            replica, _ = wanted.get(group, (0, None))
            if replica != held and not self._is_ahead(group, held):
                self._remove(group)
        for group, (replica, configuration) in wanted.items():
            if group not in self._held():
                self._create(group, replica, configuration)
                self._open(group, replica)
        self._adopted()

    def force(self, group: GroupId) -> Configuration:
        """Make the replica here the only voter of its group (forcing.py), durable with the
        next flush. Between two turns of the runtime only.
        """
        stored = self._store.load(group)
        configuration = forcing.forced(stored)
        [replica] = configuration.voters
        log.warning(
            "shard %d is forced: replica %#x goes on as %#x, alone, with its log up to %d",
            group,
            stored.replica,
            replica,
            stored.last_index,
        )
        self._host.remove_group(group)
        self._replicas.pop(group).stop("this replica was made the only one of its shard")
        self._store.write(forcing.writes(group, stored))
        self._open(group, replica)
        return configuration

    def begin_again(self, group: GroupId) -> None:
        """Give up what the replica here has, which was damaged, and have it fetched from its peers.
        Between two turns of the runtime only; durable with the next flush.
        """
        replica, configuration = self._wanted().get(group, (0, None))
        if configuration is None or self._held().get(group) != replica:
            return  # moved away meanwhile
        log.warning("the replica of shard %d begins again, empty", group)
        self._host.remove_group(group)
        self._replicas.pop(group).stop("this replica was damaged, and is fetched from its peers")
        self._store.remove_group(group)
        self._store.create_group(group, replica, configuration, amnesic=True, lost=True)
        self._open(group, replica)

    # ---- inside ----------------------------------------------------------------------------------

    def _adopted(self) -> None:
        # The level first: this node's copy of the map does not tell it.
        self._store.raise_feature_level(self._view.feature_level)
        self._view.adopted()

    def _held(self) -> dict[GroupId, ReplicaId]:
        return dict(self._store.groups())

    def _wanted(self) -> dict[GroupId, tuple[ReplicaId, Configuration]]:
        mine: dict[GroupId, tuple[ReplicaId, Configuration]] = {}
        for group, configuration in self._view.groups():
            if group == META_GROUP and self._meta is None:
                continue
            members = (*configuration.voters, *configuration.learners)
            [replica] = [each for each in members if node_of(each) == self._view.node]
            mine[group] = (replica, configuration)
        return mine

    def _is_ahead(self, group: GroupId, held: ReplicaId) -> bool:
        """Whether the replica here knows of a membership of its own that the map does not yet."""
        known = self._host.configuration(group)
        return (
            known is not None
            and known.version > self._view.configuration_version(group)
            and held in (*known.voters, *known.learners)
        )

    def _create(self, group: GroupId, replica: ReplicaId, configuration: Configuration) -> None:
        # What may have lived here before looks the same as what is new, but to who saw the map
        # before: consensus finds out what it may have promised.
        amnesic = self._rebuilds or not self._view.is_new(replica)
        self._store.create_group(
            group, replica, configuration, amnesic=amnesic, lost=self._rebuilds
        )
        log.info("shard %d has a new replica, %#x", group, replica)

    def _open(self, group: GroupId, replica: ReplicaId) -> None:
        """One damaged log sets its replica aside, and leaves those of other shards running."""
        opened = self._replicas[group] = self._replica(group, replica)
        try:
            self._host.add_group(now_s(), group, self._store.load(group), self._store.log(group))
        except (LogCorruptError, CorruptionError) as error:
            log.critical(
                "the replica of shard %d steps aside, it neither votes nor serves: %s. It is "
                "fetched again from its peers once a majority of them is well",
                group,
                error,
            )
            self._store.set_aside(group)
            opened.stop("this replica is damaged; see the node's log")

    def _remove(self, group: GroupId) -> None:
        log.info("the replica of shard %d is no member any more: it is removed here", group)
        self._host.remove_group(group)
        removed = self._replicas.pop(group, None)
        if removed is not None:
            removed.stop("this replica was moved to another node")
        self._store.remove_group(group)

    def _replica(self, group: GroupId, replica: ReplicaId) -> Replica:
        machine = self._meta if group == META_GROUP else MailStateMachine()
        assert machine is not None
        return Replica(
            group,
            replica,
            machine,
            self._store.view(group),
            self._store.applied(group)[0],
            wake=lambda: self._runtime.ask(group),
            now=now_s,
            standing=_GroupStanding(self._view, self._host, self._runtime, group),
        )


@dataclass(frozen=True, slots=True)
class _GroupStanding:
    """Implements Standing."""

    view: ClusterView
    host: Host
    runtime: Runtime
    group: GroupId

    def feature_level(self) -> int:
        return self.view.feature_level

    def leader_heard_s(self) -> float:
        return self.host.leader_heard_s(self.group)

    def in_contact(self) -> frozenset[ReplicaId]:
        return self.host.in_contact(self.group)

    def durable(self) -> Mapping[ReplicaId, int]:
        return self.host.match_indexes(self.group)

    def watch_disks(self) -> None:
        self.runtime.watch_disks(self.group)
