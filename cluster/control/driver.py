"""Runs the controller where the meta group's leader is: asks nodes, plans, carries out.

A controller that has lost its leadership without knowing does no harm: the meta group does not
take its commands, and a change of members names the configuration version that it expects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc

from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.cluster.control.observed import (
    Action,
    Advance,
    Begin,
    Change,
    Describe,
    HandOver,
    Observed,
    Record,
    RecordForced,
    SetState,
)
from mailraft.cluster.control.plan import plan
from mailraft.cluster.maps import ClusterMaps
from mailraft.cluster.meta import settings, state
from mailraft.internal.v1 import control_pb2, control_pb2_grpc, meta_pb2
from mailraft.node.interfaces import Peer, View
from mailraft.node.peer_channels import PeerChannels
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials

log = logging.getLogger(__name__)

TICK_S = 0.5
REPORT_DEADLINE_S = 1.0
ACTION_DEADLINE_S = 3.0
PROPOSE_DEADLINE_S = 5.0
LOOK_DEADLINE_S = 6.0  # the rest of a tick that carries something out, and a whole one
BALANCE_TICKS = 4  # between two looks at who leads what


class Controller:
    """One a node with a replica of the meta group; idle unless that leads. `run` until cancelled.

    seen: what it knew last, for the API; None where this node does not lead the meta group.
    """

    def __init__(
        self,
        maps: ClusterMaps,
        meta: MetaGroup,
        credentials: AnyCredentials,
        *,
        now_s: Callable[[], float],
    ) -> None:
        self._maps, self._meta, self._now_s = maps, meta, now_s
        self._channels = PeerChannels(credentials)
        self.seen: Observed | None = None
        self._looks = 0  # begun
        self._looked = asyncio.Condition()
        self._seen_in = 0  # the look that `seen` is from
        self._reports: dict[int, control_pb2.ReportResponse] = {}
        self._heard_s: dict[int, float] = {}
        self._term = 0
        self._ticks = 0

    async def look(self, *, deadline_s: float) -> Observed | None:
        """As `seen`, of a look that began after the call: who joined before is in it.

        None where that takes too long: then nobody leads here, or the meta group has no majority.
        """
        next_one = self._looks + 1
        wait_s = min(deadline_s - self._now_s(), LOOK_DEADLINE_S)
        try:
            async with asyncio.timeout(wait_s), self._looked:
                await self._looked.wait_for(lambda: self._seen_in >= next_one)
        except TimeoutError:
            return None
        return self.seen

    def stub(self, node: int) -> Any:
        """Of a node's control service. Raises NodeNotFoundError."""
        peer = next((each for each in self._maps.peers() if each.node == node), None)
        if peer is None:
            raise errors.NodeNotFoundError(f"there is no node {node}")
        return self._stub(peer)

    def _stub(self, peer: Peer) -> Any:
        return control_pb2_grpc.ControlServiceStub(self._channels.to(peer))

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(TICK_S)
                if not self._meta.leads:
                    self.seen = None
                    self._reports.clear()
                    continue
                try:
                    await self._tick()
                except errors.MailraftError as error:
                    log.info("the controller waits: %s", error.message)
        finally:
            await self._channels.close()

    async def _tick(self) -> None:
        if self._term != self._meta.term:
            # Nobody was silent for a new controller before it began to listen.
            self._term, self._reports = self._meta.term, {}
            self._heard_s.clear()
        self._looks += 1
        await self._ask_nodes()
        # Decided after all that the nodes told: no job in it is over that they still work on.
        view = await self._meta.read(deadline_s=self._now_s() + PROPOSE_DEADLINE_S)
        seen = self._look(view)
        if seen is None:
            first = meta_pb2.BootstrapMeta(map=self._maps.current())
            await self._propose(meta_pb2.MetaCommand(bootstrap=first))
            log.info("the meta group takes over the map of epoch %d", first.map.epoch)
            return
        async with self._looked:
            self.seen, self._seen_in = seen, self._looks
            self._looked.notify_all()
        self._ticks += 1
        actions = plan(seen, balance=self._ticks % BALANCE_TICKS == 0)
        await asyncio.gather(*(self._carry_out(action) for action in actions))

    async def _ask_nodes(self) -> None:
        peers = self._maps.peers()
        await self._channels.keep(peers)
        await asyncio.gather(*(self._ask(peer) for peer in peers))

    async def _ask(self, peer: Peer) -> None:
        self._heard_s.setdefault(peer.node, self._now_s())
        request = control_pb2.ReportRequest(cluster_id=self._maps.cluster_id)
        try:
            report = await self._stub(peer).Report(request, timeout=REPORT_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            log.debug("node %s does not report: %s", peer.name, error.code().name)
            return
        if report.node_id == peer.node:
            self._reports[peer.node], self._heard_s[peer.node] = report, self._now_s()

    def _look(self, view: View) -> Observed | None:
        """None before the bootstrap."""
        head, current = state.head(view), state.cluster_map(view)
        if head is None or current is None:
            return None
        now_s = self._now_s()
        return Observed(
            map=current,
            settings=settings.told(head),
            jobs=state.open_jobs(view),
            reports=dict(self._reports),
            silent_s={node: now_s - heard_s for node, heard_s in self._heard_s.items()},
        )

    async def _carry_out(self, action: Action) -> None:
        try:
            match action:
                case Change() | HandOver():
                    await self._ask_leader(action)
                case _:
                    await self._propose(command_of(action))
        except errors.MailraftError as error:
            log.info("not now: %s: %s", _named(action), error.message)
        else:
            log.info("done: %s", _named(action))

    async def _ask_leader(self, action: Change | HandOver) -> None:
        stub = self.stub(action.node)
        try:
            match action:
                case Change(_, group, version, voters, learners):
                    change = control_pb2.ChangeMembersRequest(
                        group=group, expected_version=version, voters=voters, learners=learners
                    )
                    await stub.ChangeMembers(change, timeout=ACTION_DEADLINE_S)
                case HandOver(_, group, to):
                    hand_over = control_pb2.HandOverRequest(group=group, replica_id=to)
                    await stub.HandOver(hand_over, timeout=ACTION_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc_error(error) from None

    async def _propose(self, command: meta_pb2.MetaCommand) -> None:
        await self._meta.propose(command, deadline_s=self._now_s() + PROPOSE_DEADLINE_S)


def command_of(
    action: Record | RecordForced | Begin | Advance | SetState | Describe,
) -> meta_pb2.MetaCommand:
    match action:
        case RecordForced(shard):
            return meta_pb2.MetaCommand(record_forced=meta_pb2.RecordShard(shard=shard))
        case Record(shard):
            return meta_pb2.MetaCommand(record_shard=meta_pb2.RecordShard(shard=shard))
        case Begin(spec, parent):
            begin = meta_pb2.BeginJob(spec=spec, parent_job_id=parent)
            return meta_pb2.MetaCommand(begin_job=begin)
        case Advance(job, seen):
            advance = meta_pb2.AdvanceJob(job_id=job.id, expected_version=seen, job=job)
            return meta_pb2.MetaCommand(advance_job=advance)
        case SetState(node, wanted):
            set_state = meta_pb2.SetNodeState(node_id=node, state=wanted)
            return meta_pb2.MetaCommand(set_node_state=set_state)
        case Describe(node, version, address):
            describe = meta_pb2.DescribeNode(node_id=node, version=version, address=address)
            return meta_pb2.MetaCommand(describe_node=describe)


def _named(action: Action) -> str:
    match action:
        case Record(shard) | RecordForced(shard):
            return f"record shard {shard.id} at version {shard.configuration_version}"
        case Change(_, group, version, voters, learners):
            return f"change shard {group} from version {version}: {voters} and {learners}"
        case HandOver(node, group, to):
            return f"hand shard {group} over from node {node} to {to:#x}"
        case Begin(spec, _):
            return f"begin {' '.join(str(spec).split())}"
        case Advance(job, _):
            return f"job {job.id}: {job.activity or job.state}"
        case SetState(node, wanted):
            return f"node {node} {cluster_pb2.NodeState.Name(wanted)}"
        case Describe(node, version, address):
            return f"node {node} runs {version} at {address}"
