"""Directed scenarios. Each takes mutants, so that `make mutants` can see it fail, and answers its
Scene, whose transcript stands in testdata/. A docstring is the promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.sim.scene import GROUP, SETTINGS, Scene
from tests.sim.watch import PropertyError

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import ReadReady, ReadRefused, Received, Rejected
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.interfaces import replica_id

Scenario = Callable[[Mutant], Scene]


def hold(condition: object, promise: str) -> None:
    """Raises PropertyError(promise) when the condition does not hold."""
    if not condition:
        raise PropertyError(promise)


# ---- logs --------------------------------------------------------------------------------------


def figure_7(mutants: Mutant = Mutant.NONE) -> Scene:
    """Whatever followers lack or have too much, the leader brings their logs to its own (Raft
    figure 7).
    """
    scene = Scene(
        7,
        mutants,
        logs={
            1: (1, 1, 1, 4, 4, 5, 5, 6, 6, 6),
            2: (1, 1, 1, 4, 4, 5, 5, 6, 6),  # (a)
            3: (1, 1, 1, 4),  # (b)
            4: (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),  # (c)
            5: (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),  # (d)
            6: (1, 1, 1, 4, 4, 4, 4),  # (e)
            7: (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),  # (f)
        },
        terms={1: 7},
    )
    scene.campaign(1)
    scene.settle()
    hold(scene.status(1).term == 8, "progress: n1 leads in term 8")
    for number in range(2, 8):
        hold(scene.log(number) == scene.log(1), f"log matching: n{number} has the leader's log")
    return scene


def figure_8_overwritten(mutants: Mutant = Mutant.NONE) -> Scene:
    """An entry of an old term is not committed by counting its copies (Raft section 5.4.2, figure
    8 c and d): a later leader may still replace it.
    """
    scene = _figure_8_until_c(mutants)
    hold(scene.status(1).commit_index < 3, "commit rule: an old term's entry counts by copies")
    scene.drop(1)
    scene.elect(5, 3, 4)  # (d)
    scene.settle(3, 5)
    hold(scene.log(3)[1] == scene.log(5)[1], "log matching: n3 has n5's entry at 3")
    hold(scene.values(5) == [], "state machine safety: nothing was applied")
    return scene


def figure_8_committed(mutants: Mutant = Mutant.NONE) -> Scene:
    """Once an entry of its own term is on a majority, so is all that precedes it (figure 8 e)."""
    scene = _figure_8_until_c(mutants)
    scene.settle(1, 2, 3)
    hold(scene.values(1) == [b"old"], "progress: the old entry is committed below the new one")
    scene.campaign(5)  # its log is behind a majority's now
    scene.settle()
    hold(scene.leaders() == [1] or not scene.status(5).leading, "leader completeness: n5 leads")
    return scene


def _figure_8_until_c(mutants: Mutant) -> Scene:
    scene = Scene(5, mutants, settings=replace(SETTINGS, message_bytes=1))  # an entry a message
    scene.elect(1)
    scene.live_s(0.2)
    scene.propose(1, b"old")  # (a): reaches n2 only
    scene.deliver(1, 2)
    scene.drop(1, 2)
    scene.elect(5, 3, 4)  # (b): its own entry at 3 reaches nobody
    scene.power_cut(5)
    scene.elect(1, 2, 3)  # (c): it is elected again ...
    for _ in range(2):  # ... learns that n3 lacks the old entry, and sends it
        scene.deliver(1, 3)
        scene.deliver(3, 1)
    held = [number for number in (1, 2, 3) if (3, 1) in scene.log(number)]
    hold(held == [1, 2, 3], "progress: the old entry is on a majority")
    return scene


# ---- elections ---------------------------------------------------------------------------------


def returning_node(mutants: Mutant = Mutant.NONE) -> Scene:
    """A node that comes back from a partition deposes no healthy leader (thesis section 9.6;
    row 7).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    for _ in range(3):
        scene.time_out(3)
        scene.drop(3)
        scene.live_s(0.6, 1, 2)
    scene.propose(1, b"meanwhile")
    scene.settle(1, 2)
    scene.drop(3)
    scene.time_out(3)
    scene.settle()
    hold(
        scene.leaders() == [1] and scene.status(1).term == 1,
        "no needless election: the healthy leader is deposed",
    )
    scene.live_s(0.6)
    hold(scene.values(3) == [b"meanwhile"], "progress: the node that came back follows")
    return scene


def lower_term_is_answered(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader of a lower term is told so and steps down: otherwise a node whose term rose alone
    would never follow again (Raft section 5.1; row 7).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.pass_s(0.1)
    scene.step(1)
    scene.deliver(1, 2)
    scene.pass_s(0.45)
    scene.deliver(2, 1)  # slowly: so n1 still leads, while n2 has not heard of it for a while ...
    scene.pass_s(0.1)
    scene.time_out(3)
    scene.deliver(3, 2)
    scene.deliver(2, 3)  # ... and would vote for n3, but never hears of the election
    scene.drop(3)
    hold(scene.status(3).term == 2, "progress: n3 is a candidate in term 2")
    scene.live_s(0.6)
    if not scene.leaders():
        scene.elect(1)
    scene.propose(scene.leaders()[0], b"together")
    scene.live_s(0.3)
    hold(scene.values(3) == [b"together"], "progress: the node with the higher term follows again")
    return scene


def duplicate_votes(voters: int, mutants: Mutant = Mutant.NONE) -> Scene:
    """A vote that arrives twice counts once (Raft section 5.2; row 6)."""
    scene = Scene(voters, mutants)
    for candidate in (1, 2):
        scene.campaign(candidate)
    for candidate in (1, 2):  # both win their pre-vote ...
        for a_to_b in (True, False):
            for voter in (3, 4):
                scene.deliver(*((candidate, voter) if a_to_b else (voter, candidate)))
        scene.pass_s(2 * SETTINGS.heartbeat_s)
    scene.drop_between(1, 2)
    scene.deliver(1, 3)  # ... and ask for votes in the same term
    scene.put(3, 1, 2 * scene.take(3, 1))
    scene.deliver(3, 1)
    for other in range(4, voters + 1):
        scene.deliver(2, other)
        scene.put(other, 2, (1 if voters == 5 else 2) * scene.take(other, 2))
        scene.deliver(other, 2)
    hold(
        scene.leaders() == ([2] if voters == 5 else []),
        f"election safety: {scene.leaders()} lead after a vote was counted twice",
    )
    return scene


def duplicate_votes_of_four(mutants: Mutant = Mutant.NONE) -> Scene:
    """A vote that arrives twice counts once, of four voters (as during every move)."""
    return duplicate_votes(4, mutants)


def duplicate_votes_of_five(mutants: Mutant = Mutant.NONE) -> Scene:
    """A vote that arrives twice counts once, of five voters."""
    return duplicate_votes(5, mutants)


def vote_of_an_earlier_life(mutants: Mutant = Mutant.NONE) -> Scene:
    """A vote of a replica that is not in the configuration does not count (rows 6 and 12)."""
    scene = Scene(3, mutants)
    scene.campaign(1)
    stranger = raft_pb2.Envelope(
        group=GROUP,
        from_replica=replica_id(2, 2),
        to_replica=replica_id(1, 1),
        vote_reply=raft_pb2.VoteReply(granted=True, pre_vote=True),
    )
    scene.step(1, Received(2, 1, raft_pb2.ExchangeRequest(envelopes=[stranger])))
    hold(scene.status(1).term == 0, "election safety: a stranger's vote counts")
    return scene


def vote_waits_for_the_disk(mutants: Mutant = Mutant.NONE) -> Scene:
    """A vote is on disk before it is said: a power cut must not let it be given again (row 1)."""
    scene = Scene(3, mutants)
    scene.flushing.discard(3)
    scene.campaign(1)
    scene.deliver(1, 3)
    scene.deliver(3, 1)  # pre-votes rest on nothing
    scene.deliver(1, 3)
    scene.deliver(3, 1)  # the vote would: it is not on disk yet
    if not scene.leaders():
        scene.flush(3)
        scene.deliver(3, 1)
        hold(scene.leaders() == [1], "progress: the vote arrives once it is on disk")
        return scene
    scene.power_cut(3)
    scene.campaign(2)
    scene.settle(2, 3)
    raise PropertyError(f"durable vote: n3 voted twice in term 1, leaders {scene.leaders()}")


# ---- commits -----------------------------------------------------------------------------------


def stale_acknowledgement(mutants: Mutant = Mutant.NONE) -> Scene:
    """An acknowledgement of an older term commits nothing in this one (Raft section 5.3; row 4)."""
    scene = Scene(5, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    for value in (b"a", b"b", b"c"):
        scene.propose(1, value)
    scene.deliver(1, 2)
    late = scene.take(2, 1)  # n2 acknowledges 3, 4 and 5 of term 1, slowly
    scene.drop(1)
    scene.elect(3, 4, 5)  # term 2
    scene.settle(2, 3, 4, 5)  # n2 gives up what it had
    scene.deliver(3, 1)
    scene.settle(1, 3, 4, 5)
    scene.live_s(0.2)
    scene.elect(1, 3, 4, 5)  # term 3, index 4
    scene.drop(2, 3, 5)
    scene.propose(1, b"d")
    scene.settle(1, 4)  # two of five have it
    scene.put(2, 1, late)
    scene.deliver(2, 1)
    hold(scene.values(1) == [], "durable majority: an old acknowledgement counts")
    return scene


def single_voter_flushes_first(mutants: Mutant = Mutant.NONE) -> Scene:
    """A group of one commits only what is on its disk (Raft section 5.3; row 5)."""
    scene = Scene(1, mutants)
    scene.flushing.clear()
    scene.campaign(1)
    scene.flush(1)
    scene.propose(1, b"precious")
    scene.step(1)
    hold(scene.values(1) == [], "durable majority: committed before the flush")
    scene.flush(1)
    hold(scene.values(1) == [b"precious"], "progress: committed after the flush")
    return scene


def nothing_is_sent_twice(mutants: Mutant = Mutant.NONE) -> Scene:
    """Without faults each entry travels once to each follower, however late the acknowledgements
    (row 3: stock goes back to what was acknowledged, and sends the rest again).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    values = [b"%d" % number + bytes(100) for number in range(10)]
    scene.entry_bytes.clear()
    for value in values:
        scene.propose(1, value)
    for follower in (2, 3):
        scene.deliver(1, follower)
        scene.deliver(follower, 1)
    scene.settle()
    once = sum(map(len, values))
    hold(
        scene.entry_bytes == {(1, 2): once, (1, 3): once},
        f"nothing is sent twice: {scene.entry_bytes}, of {once} bytes",
    )
    hold(scene.values(3) == values, "progress: all values arrive")
    return scene


# ---- leadership --------------------------------------------------------------------------------


def stopped_leader(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader that was stopped and continued leads no more, within an election timeout (row 8)."""
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.elect(2, 3)
    scene.drop(1)
    scene.step(1)
    hold(scene.leaders() == [2], "one leader: the stopped one still says that it leads")
    return scene


def hung_disk(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader whose disk hangs hands over; what followers have on disk, the next one commits."""
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.flushing.discard(1)
    scene.propose(1, b"value")
    scene.live_s(0.9)
    hold(scene.leaders() == [1], "progress: a slow disk is no reason yet")
    scene.live_s(0.4)
    (leader,) = scene.leaders()
    hold(leader != 1, "progress: leadership moves")
    scene.live_s(0.2)
    hold(scene.values(leader) == [b"value"], "progress: the value is committed")
    return scene


def leader_is_found_again(mutants: Mutant = Mutant.NONE) -> Scene:
    """A follower that gave its leader up learns of it from the next heartbeat, also when nothing is
    written: so it serves reads again.
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.time_out(3)
    scene.settle()
    scene.live_s(0.2)
    hold(scene.status(3).leader == replica_id(1, 1), "progress: n3 knows its leader again")
    token = scene.read(3)
    scene.settle()
    hold(isinstance(scene.outcomes[token][0], ReadReady), "progress: n3 serves a read")
    return scene


def transfer_under_load(mutants: Mutant = Mutant.NONE) -> Scene:
    """A transfer loses no request: those before it are committed by the new leader, those that
    come meanwhile are sent on to it (thesis section 3.10; row 17).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.propose(1, b"before")  # on its way to n2, which is asked to take over
    scene.transfer(1, 2)
    held = scene.propose(1, b"meanwhile")
    hold(not scene.outcomes.get(held), "transfer: a proposal is appended behind the target's back")
    scene.settle()
    hold(scene.leaders() == [2], "progress: n2 leads")
    scene.live_s(0.2)
    hold(
        scene.outcomes[held] == [Rejected(held, GROUP, replica_id(2, 1))],
        "transfer: the waiting request is told the new leader",
    )
    hold(all(scene.values(n) == [b"before"] for n in (1, 2, 3)), "transfer: a request is lost")
    return scene


def transfer_to_a_dead_target(mutants: Mutant = Mutant.NONE) -> Scene:
    """A transfer that does not come about holds requests for one election timeout, no longer."""
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.transfer(1, 2)
    scene.drop(2)
    held = scene.propose(1, b"patient")
    scene.live_s(0.4, 1, 3)
    hold(not scene.outcomes.get(held), "transfer: the proposal waits")
    scene.live_s(0.3, 1, 3)
    hold(scene.leaders() == [1] and scene.appended(held), "progress: the leader goes on")
    hold(scene.values(1) == [b"patient"], "progress: the proposal is committed")
    return scene


# ---- reads -------------------------------------------------------------------------------------


def read_at_a_deposed_leader(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader that was replaced and does not know it answers no read (thesis section 6.4;
    row 9).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.transfer(1, 2)
    scene.deliver(1, 2)
    scene.settle(2, 3)
    scene.propose(2, b"newer")
    scene.settle(2, 3)
    hold(scene.leaders() == [1, 2] and scene.values(2) == [b"newer"], "progress: both lead")
    token = scene.read(1)
    hold(not scene.outcomes.get(token), "linearizability: a deposed leader answers a read")
    scene.settle()
    scene.live_s(0.2)
    hold(
        [type(outcome) for outcome in scene.outcomes[token]] == [ReadRefused],
        "linearizability: the read is refused",
    )
    return scene


def read_at_a_new_leader(mutants: Mutant = Mutant.NONE) -> Scene:
    """A new leader answers no read before an entry of its own term is committed: until then it may
    not know of all that was (thesis section 6.4, step 1).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.propose(1, b"acknowledged")
    scene.deliver(1, 2)
    scene.deliver(2, 1)
    hold(scene.values(1) == [b"acknowledged"], "progress: n1 acknowledges")
    written = scene.status(1).commit_index
    scene.drop(1)
    scene.campaign(2)
    for a, b in ((2, 3), (3, 2)) * 2:
        scene.deliver(a, b)
    hold(scene.status(2).leading, "progress: n2 leads")
    token = scene.read(2)
    for a, b in ((2, 3), (3, 2)) * 3:
        scene.deliver(a, b)
    scene.settle(2, 3)
    indexes = [outcome.index for outcome in scene.outcomes[token] if isinstance(outcome, ReadReady)]
    hold(
        len(indexes) == 1 and indexes[0] >= written,
        f"linearizability: {scene.outcomes[token]} is answered, {written} was acknowledged",
    )
    return scene


def read_at_a_follower(mutants: Mutant = Mutant.NONE) -> Scene:
    """A follower asks its leader for the index and serves the read itself; one round serves all
    reads that wait.
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.propose(1, b"value")
    scene.settle()
    tokens = [scene.read(2), scene.read(3), scene.read(1), scene.read(1)]
    scene.settle()
    for token in tokens:
        hold(
            scene.outcomes[token] == [ReadReady(token, GROUP, scene.status(1).commit_index)],
            "progress: the read gets its index",
        )
    return scene


SCENARIOS: tuple[Scenario, ...] = (
    returning_node,
    figure_7,
    figure_8_overwritten,
    figure_8_committed,
    lower_term_is_answered,
    duplicate_votes_of_four,
    duplicate_votes_of_five,
    vote_of_an_earlier_life,
    vote_waits_for_the_disk,
    stale_acknowledgement,
    single_voter_flushes_first,
    nothing_is_sent_twice,
    stopped_leader,
    hung_disk,
    leader_is_found_again,
    transfer_under_load,
    transfer_to_a_dead_target,
    read_at_a_deposed_leader,
    read_at_a_new_leader,
    read_at_a_follower,
)
