"""A cluster for controllers to work on: groups that obey the rules of membership changes, nodes
that die and come back, messages that are late, lost or doubled. No I/O, all chance from one seed.

A step is half a second, as a controller's tick. What the controllers themselves run is the real
code: plan(), and the state machine of the meta group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.sim.control_groups import SimGroup, SimNode
from tests.sim.watch import PropertyError

from dict_view import DictView
from mailraft.cluster import mapfile
from mailraft.cluster.control.driver import command_of
from mailraft.cluster.control.observed import Action, Change, HandOver, Observed
from mailraft.cluster.control.plan import plan
from mailraft.cluster.meta import settings, state
from mailraft.cluster.meta.machine import MetaStateMachine
from mailraft.internal.v1 import control_pb2, meta_pb2
from mailraft.node.interfaces import META_GROUP, Entry, EntryKind, Proposal, node_of
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2

STEP_S = 0.5
REPLACE_AFTER_MS = 15_000
DELAY_MAX = 6  # steps that a message may take while there are faults
LATE_MAX = 80  # that a copy of one may take
# A node that falls silent is counted on until it was not heard for 3 s, and a plan took its time.
TRUSTED_STEPS = 6 + DELAY_MAX
CALM_STEPS = 700
_ACTIVE, _REMOVED = cluster_pb2.NODE_STATE_ACTIVE, cluster_pb2.NODE_STATE_REMOVED


@dataclass(slots=True)
class _Controller:
    """What a node that leads the meta group has heard."""

    term: int = 0
    reports: dict[int, control_pb2.ReportResponse] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)  # node -> step
    jobs: Sequence[meta_pb2.MetaJobRecord] = ()


class ControlWorld:
    """hosts: of the nodes 1, 2, ..., in order; empty: one of its own."""

    def __init__(self, seed: int, hosts: Sequence[str], shards: int) -> None:
        self.random = Random(seed)
        self.step_number = 0
        self.faults = False
        # False: a controller goes on with the jobs that it knew when it leads no more.
        self.reads_before_it_plans = True
        self.delivered: list[Action] = []
        self.after_delivery: Callable[[int], None] = lambda _sender: None
        first = mapfile.make(
            [
                cluster_pb2.Node(
                    id=number,
                    name=f"n{number}",
                    address=f"n{number}:1",
                    host=host,
                    weight_milli=1_000,
                    state=_ACTIVE,
                )
                for number, host in enumerate(hosts, 1)
            ],
            shards,
        )
        self.groups = {each.id: SimGroup(each) for each in (first.meta, *first.shards)}
        self.nodes = {each.id: SimNode(each.id) for each in first.nodes}
        for group in self.groups.values():
            for replica in group.configuration.voters:
                self.nodes[node_of(replica)].rows[group.id] = replica
        self._machine, self._views, self._index = MetaStateMachine(), (DictView(), DictView()), 0
        self._controllers: dict[int, _Controller] = {}
        self._plans: list[tuple[int, int, Observed]] = []  # due, of whom, what it heard
        # due, asked when, of whom in which term
        self._messages: list[tuple[int, int, int, int, Action]] = []
        self._epoch = 0
        self.decide(meta_pb2.MetaCommand(bootstrap=meta_pb2.BootstrapMeta(map=first)))
        wanted = admin_pb2.Settings(replace_after_ms=REPLACE_AFTER_MS)
        change = meta_pb2.ChangeSettings(settings=wanted, fields=["replace_after_ms"])
        self.decide(meta_pb2.MetaCommand(change_settings=change))

    # ---- what there is ---------------------------------------------------------------------------

    @property
    def map(self) -> cluster_pb2.ClusterMap:
        found = state.cluster_map(self._views[0])
        assert found is not None
        return found

    @property
    def open_jobs(self) -> list[job_pb2.Job]:
        return [each.job for each in state.open_jobs(self._views[0])]

    @property
    def open_moves(self) -> list[meta_pb2.MetaJobRecord]:
        return [each for each in state.open_jobs(self._views[0]) if each.job.spec.HasField("move")]

    @property
    def controller(self) -> int:
        """The node that leads the meta group; 0: nobody does."""
        return node_of(self.groups[META_GROUP].leader)

    def replicas_of(self, shard: int) -> list[cluster_pb2.Replica]:
        """The replicas of a shard, by the map."""
        found = state.shard(self._views[0], shard)
        assert found is not None
        return list(found.replicas)

    def job(self, job_id: str) -> job_pb2.Job:
        record = state.job(self._views[0], job_id)
        assert record is not None
        return record.job

    # ---- what happens ----------------------------------------------------------------------------

    def decide(self, command: meta_pb2.MetaCommand) -> meta_pb2.MetaReply:
        """Apply a command, on two replicas of the meta group's state."""
        command.time_ms = self.step_number * 500
        payload, _ = self._machine.encode([Proposal(command)])
        self._index += 1
        entry = Entry(self._index, 1, EntryKind.COMMAND, payload)
        applied, other = (self._machine.apply(view, entry) for view in self._views)
        self._views[0].apply(applied.effects)
        self._views[1].apply(other.effects)
        if self._views[0].rows != self._views[1].rows:
            raise PropertyError("determinism: two replicas of the meta group differ")
        self._check_map()
        [reply] = applied.replies
        assert isinstance(reply, meta_pb2.MetaReply)
        return reply

    def begin(self, spec: job_pb2.JobSpec) -> str:
        """Its id; empty when it is refused."""
        return self.decide(meta_pb2.MetaCommand(begin_job=meta_pb2.BeginJob(spec=spec))).job.job.id

    def cancel(self, job: job_pb2.Job) -> None:
        told = job_pb2.Job()
        told.CopyFrom(job)
        told.state = job_pb2.JOB_STATE_CANCELLING
        advance = meta_pb2.AdvanceJob(job_id=job.id, expected_version=job.version, job=told)
        self.decide(meta_pb2.MetaCommand(advance_job=advance))

    def stay(self, number: int) -> None:
        """Undrain, or decommission no more."""
        active = meta_pb2.SetNodeState(node_id=number, state=_ACTIVE)
        self.decide(meta_pb2.MetaCommand(set_node_state=active))

    def add_node(self) -> int:
        number = max(self.nodes) + 1
        node = cluster_pb2.Node(name=f"n{number}", address=f"n{number}:1")
        reply = self.decide(meta_pb2.MetaCommand(admit_node=meta_pb2.AdmitNode(node=node)))
        assert reply.node.id == number
        self.nodes[number] = SimNode(number)
        return number

    def crash(self, number: int) -> None:
        node = self.nodes[number]
        node.up, node.split = False, False
        node.away_since = min(node.away_since, self.step_number)
        self._controllers.pop(number, None)
        self._plans = [each for each in self._plans if each[1] != number]

    def cut(self, number: int, *, heard: bool = False) -> None:
        """Nobody hears it any more, or only controllers do."""
        node = self.nodes[number]
        node.split, node.cut = heard, not heard
        node.away_since = min(node.away_since, self.step_number)

    def come_back(self, number: int) -> None:
        node = self.nodes[number]
        if not node.gone:
            node.up, node.cut, node.split = True, False, False
            node.away_since = 1 << 30

    def step(self) -> None:
        """Half a second."""
        self.step_number += 1
        for group in self.groups.values():
            group.step(self.random, self.nodes, restless=self.faults)
        for node in self.nodes.values():
            if node.reachable and not node.split and self.random.random() < 0.5:
                node.adopt(self.map, self.groups)
        self._listen()
        for due, who, heard in self._taken(self._plans):
            if due >= 0:
                self._plan(who, heard)
        for _, asked, who, term, action in self._taken(self._messages):
            self._deliver(asked, who, term, action)

    def run_until(self, done: Callable[[], bool], steps: int, what: str) -> int:
        """How many steps it took."""
        for taken in range(steps):
            if done():
                return taken
            self.step()
        raise PropertyError(f"progress: not {what} after {steps} steps: {self.describe()}")

    def calm(self, lost: Sequence[int] = ()) -> None:
        """No more faults: everything comes back but what is lost for good, and every job ends."""
        self.faults = False
        for number in self.nodes:
            if number not in lost:
                self.come_back(number)
        self.run_until(lambda: self._settled(lost), CALM_STEPS, "settled")

    def describe(self) -> str:
        jobs = [
            f"{job.id} {' '.join(str(job.spec).split())} {job.activity}" for job in self.open_jobs
        ]
        return "; ".join(
            [
                *jobs,
                *(str(group) for group in self.groups.values()),
                *(str(node) for node in self.nodes.values()),
            ]
        )

    # ---- inside ----------------------------------------------------------------------------------

    def _taken(self, queue: list[tuple]) -> list[tuple]:  # type: ignore[type-arg]  # of two kinds
        due = [each for each in queue if each[0] <= self.step_number]
        queue[:] = [each for each in queue if each[0] > self.step_number]
        return due

    def _delay(self) -> int:
        return self.step_number + (self.random.randrange(DELAY_MAX) if self.faults else 0)

    def _listen(self) -> None:
        """Who leads the meta group asks all nodes; what it hears it looks at a moment later."""
        number, term = self.controller, self.groups[META_GROUP].term
        if number and self._controllers.get(number, _Controller()).term != term:
            self._controllers[number] = _Controller(term)
        for who, known in self._controllers.items():
            goes_on = who == number or (self.faults and not self.reads_before_it_plans)
            if not self.nodes[who].serving or not goes_on:
                continue
            for node in self.map.nodes:
                known.heard.setdefault(node.id, self.step_number)
                missed = self.faults and self.random.random() < 0.1
                if self.nodes[node.id].reachable and not missed:
                    report = self.nodes[node.id].report(node.address, self.groups)
                    known.reports[node.id] = report
                    known.heard[node.id] = self.step_number
            if who == number:
                known.jobs = state.open_jobs(self._views[0])
            self._plans.append((self._delay(), who, self._observed(known)))

    def seen(self) -> Observed:
        """What the controller knows."""
        return self._observed(self._controllers[self.controller])

    def _observed(self, known: _Controller) -> Observed:
        head = state.head(self._views[0])
        assert head is not None
        silent_s: Mapping[int, float] = {
            node: (self.step_number - heard) * STEP_S for node, heard in known.heard.items()
        }
        return Observed(
            self.map,
            settings.told(head),
            known.jobs,
            dict(known.reports),
            silent_s,
        )

    def _plan(self, who: int, heard: Observed) -> None:
        seen = heard
        if self.reads_before_it_plans:
            if who != self.controller:
                return
            jobs = state.open_jobs(self._views[0])
            seen = Observed(self.map, heard.settings, jobs, heard.reports, heard.silent_s)
        if who not in self._controllers:
            return
        term = self._controllers[who].term
        for action in plan(seen, balance=self.step_number % 4 == 0):
            copies = self.random.choice((0, 1, 1, 1, 1, 1, 1, 1, 2, 2)) if self.faults else 1
            for copy in range(copies):
                due = self.step_number + self.random.randrange(LATE_MAX) if copy else self._delay()
                self._messages.append((due, self.step_number, who, term, action))

    def _deliver(self, asked: int, who: int, term: int, action: Action) -> None:
        if self.faults and not self.nodes[who].reachable and self.random.random() < 0.5:
            return
        if isinstance(action, Change | HandOver):
            group = self.groups[action.group]
            if not self.nodes[action.node].serving or node_of(group.leader) != action.node:
                return
            if isinstance(action, HandOver):
                group.hand_over(action.to, self.nodes)
            elif not group.change(action):
                return
            else:
                self._check_voters(group, asked)
        elif (who, term) == (self.controller, self.groups[META_GROUP].term):
            self.decide(command_of(action))
        else:
            return
        self.delivered.append(action)
        self.after_delivery(who)

    # ---- what must hold --------------------------------------------------------------------------

    def _check_map(self) -> None:
        now = self.map
        mapfile.check(now)
        if now.epoch < self._epoch:
            raise PropertyError(f"epochs rise: {now.epoch} after {self._epoch}")
        self._epoch = now.epoch
        removed = {node.id for node in now.nodes if node.state == _REMOVED}
        moving = [job.spec.move.shard for job in self.open_jobs if job.spec.HasField("move")]
        if len(set(moving)) != len(moving):
            raise PropertyError(f"one move a shard: {moving}")
        for shard in (now.meta, *now.shards):
            if removed & {each.node_id for each in shard.replicas}:
                raise PropertyError(f"removed nodes hold nothing: shard {shard.id}")

    def _check_voters(self, group: SimGroup, asked: int) -> None:
        """A change is never what costs a group a replica, or its majority."""

        def trusted(replica: int) -> bool:
            node = self.nodes[node_of(replica)]
            return node.serving or asked - node.away_since < TRUSTED_STEPS

        voters = group.configuration.voters
        if len(voters) < 3:
            raise PropertyError(f"replicas: a change leaves {group}")
        serving = sum(self.nodes[node_of(each)].serving for each in group.committed.voters)
        could = serving > len(group.committed.voters) // 2
        if could and sum(map(trusted, voters)) <= len(voters) // 2:
            raise PropertyError(f"quorum: a change leaves {group} without")

    def _settled(self, lost: Sequence[int]) -> bool:
        now = self.map
        if self._messages or not all(self._may_wait(job, lost) for job in self.open_jobs):
            return False
        for shard in (now.meta, *now.shards):
            group = self.groups[shard.id]
            voters = tuple(sorted(each.replica_id for each in shard.replicas))
            if voters != group.committed.voters or group.configuration.learners:
                return False
            if any(node_of(each) in lost for each in voters):
                if not self._too_few(lost):
                    return False
                continue
            if len(voters) != 3:
                raise PropertyError(f"replicas: {group} settled with {len(voters)} voters")
            hosts = [
                node.host or f"#{node.id}" for node in now.nodes if node.id in map(node_of, voters)
            ]
            if len(set(hosts)) != 3:
                raise PropertyError(f"hosts: shard {shard.id} is on {hosts}")
        return all(self._is_tidy(node) for node in self.nodes.values() if node.up)

    def _is_tidy(self, node: SimNode) -> bool:
        """Whether what lies on a node is what the map says, and it is meant to run at all."""
        wanted = {
            shard.id: each.replica_id
            for shard in (self.map.meta, *self.map.shards)
            for each in shard.replicas
            if each.node_id == node.number
        }
        removed = {each.id for each in self.map.nodes if each.state == _REMOVED}
        return node.rows == wanted and node.number not in removed

    def _may_wait(self, job: job_pb2.Job, lost: Sequence[int]) -> bool:
        """Only for nodes, and only if it says so."""
        if job.spec.HasField("decommission"):
            told = job.activity == "waits for nodes that can take its replicas"
            return told and self._too_few(lost)
        active = {node.id for node in self.map.nodes if node.state == _ACTIVE} - {*lost}
        return job.activity == "waits for other nodes that may lead" and any(
            active.isdisjoint(map(node_of, group.committed.voters))
            for group in self.groups.values()
            if node_of(group.leader) == job.spec.drain.node_id
        )

    def _too_few(self, lost: Sequence[int]) -> bool:
        able = {
            node.host or str(node.id)
            for node in self.map.nodes
            if node.state == _ACTIVE and node.id not in lost
        }
        return len(able) < 3
