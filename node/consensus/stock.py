"""pysyncobj 0.3.17 with its surroundings taken away: no sockets, no threads, no files, no pickle.

What stays is its engine: elections and terms, the voting rule, the order of a tick, the log, the
command queue and its callbacks, the target's half of a transfer. Private names that mailraft reads
or overrides are listed once, in `Stock` and OVERRIDDEN, under names as in the Raft paper;
tests/unit/test_stock.py holds them against the installed version, so that an upgrade fails loudly.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from random import Random
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, syncobj
from pysyncobj.node import Node as StockNode
from pysyncobj.transport import Transport

from mailraft.node.interfaces import ReplicaId

PYSYNCOBJ_VERSION = "0.3.17"

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

SUCCESS = FAIL_REASON.SUCCESS
DISCARDED = FAIL_REASON.DISCARDED

# Methods of SyncObj that Group replaces or wraps (each says why where it does).
OVERRIDDEN = (
    "_SyncObj__applyLogEntries",
    "_SyncObj__doApplyCommand",
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__sendNextNodeIdx",
    "_SyncObj__tryLogCompaction",
    "_onTick",
)


class Surroundings:
    """Time and chance of the host whose turn it is: pysyncobj reads both from module globals.

    One process may run many hosts (the simulator does); each sets these before it steps.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.chance = Random(0)
        self.flush_s = 0.0  # how long a write took lately until it was durable

    def enter(self, now: float, chance: Random, flush_s: float = 0.0) -> None:
        self.now, self.chance, self.flush_s = now, chance, flush_s

    def monotonic(self) -> float:
        return self.now

    def random(self) -> float:  # pysyncobj calls random.random()
        return self.chance.random()


surroundings = Surroundings()

# Candidate and voter, each behind a flush that is under way already.
FLUSHES_PER_ELECTION = 4
USUAL_FLUSH_S = 0.05  # up to here the settings' timeouts have room enough


class _NoPickle:
    """Stands where pysyncobj would reach for pickle: nothing from a socket or a disk gets there."""

    @staticmethod
    def loads(*_: object) -> NoReturn:
        raise RuntimeError("unpickling is not part of mailraft")

    dumps = loads


class _NoPoller:
    """pysyncobj polls its own sockets at the end of a tick; there are none."""

    def poll(self, _timeout: float) -> None:
        return


# Replaced once, at import: module globals are the only seam pysyncobj offers for these.
syncobj.monotonicTime = surroundings.monotonic
syncobj.random = surroundings
syncobj.pickle = _NoPickle
syncobj.PIPE_NOTIFIER_ENABLED = False  # two descriptors a group, never closed
syncobj.createPoller = lambda _type: _NoPoller()
syncobj.createJournal = lambda journal: journal  # conf.journalFile is the journal object

T = TypeVar("T")


class Private(property, Generic[T]):
    """A private attribute of SyncObj under a readable name.

    A property around an attrgetter, so that reading one runs no Python: a turn reads hundreds.
    """

    def __init__(self, name: str) -> None:
        self.mangled = f"_SyncObj__{name}"
        super().__init__(attrgetter(self.mangled), self._store)

    def _store(self, obj: object, value: T) -> None:
        setattr(obj, self.mangled, value)

    if TYPE_CHECKING:

        @overload  # type: ignore[override]  # a property of T
        def __get__(self, obj: None, owner: type) -> Private[T]: ...
        @overload
        def __get__(self, obj: object, owner: type) -> T: ...
        def __get__(self, obj: object | None, owner: type) -> Private[T] | T: ...

        def __set__(self, obj: object, value: T) -> None: ...


class Node(int, StockNode):  # type: ignore[misc]  # pysyncobj has no types
    """A replica by its id, as pysyncobj wants it. A number itself: a turn looks up dozens by their
    hash, which is Python in pysyncobj's.
    """

    id = int.real  # the property of pysyncobj's

    def __init__(self, replica: ReplicaId) -> None:
        """The number is all there is."""


class Outbox(Transport):  # type: ignore[misc]  # pysyncobj has no types
    """The transport of a group: keeps what pysyncobj sends until the group takes it."""

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.messages: list[tuple[Node, dict[str, Any]]] = []

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.messages.append((node, message))
        return True

    def destroy(self) -> None:
        self.messages.clear()

    def take(self) -> list[tuple[Node, dict[str, Any]]]:
        taken, self.messages = self.messages, []
        return taken


class Stock(SyncObj):  # type: ignore[misc]  # pysyncobj has no types
    """SyncObj under the names of the Raft paper (figure 2)."""

    term: Private[int] = Private("raftCurrentTerm")
    voted_for: Private[int | None] = Private("votedForNodeId")
    role: Private[int] = Private("raftState")
    leader_node: Private[Node | None] = Private("raftLeader")
    commit_index: Private[int] = Private("raftCommitIndex")
    handed_index: Private[int] = Private("raftLastApplied")  # here: handed on to be applied
    next_index: Private[dict[Node, int]] = Private("raftNextIndex")
    match_index: Private[dict[Node, int]] = Private("raftMatchIndex")
    last_response: Private[dict[Node, float]] = Private("lastResponseTime")
    election_deadline: Private[float] = Private("raftElectionDeadline")
    append_deadline: Private[float] = Private("newAppendEntriesTime")
    transfer_in_progress: Private[bool] = Private("transferInProgress")
    other_nodes: Private[set[Node]] = Private("otherNodes")
    connected_nodes: Private[set[Node]] = Private("connectedNodes")
    votes_count: Private[int] = Private("votesCount")
    awaited_commits: Private[dict[int, list[Any]]] = Private("commandsWaitingCommit")

    def __dir__(self) -> list[str]:
        # SyncObj looks through dir(self) for @replicated methods, reading every property.
        return []

    def stock_receive(self, node: Node, message: dict[str, Any]) -> None:
        self._SyncObj__onMessageReceived(node, message)

    def stock_set_term(self, term: int, voted_for: int | None) -> None:
        self._SyncObj__setCurrentTerm(term, voted_for)

    def stock_set_role(self, role: int) -> None:
        self._SyncObj__setState(role)

    def stock_timeout_s(self) -> float:
        return self._SyncObj__generateRaftTimeout()

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802  # the name that stock calls
        """A vote counts once it is on disk, at the candidate and at the voter: an election takes a
        few flushes, and its timeout must be longer (Raft section 5.6), also where a disk is slow.
        """
        timeout: float = super()._SyncObj__generateRaftTimeout()
        return timeout + FLUSHES_PER_ELECTION * max(0.0, surroundings.flush_s - USUAL_FLUSH_S)


Callback = Callable[[object, int], None]

__all__ = [
    "CANDIDATE",
    "DISCARDED",
    "FOLLOWER",
    "LEADER",
    "OVERRIDDEN",
    "PYSYNCOBJ_VERSION",
    "SUCCESS",
    "Callback",
    "Node",
    "Outbox",
    "Private",
    "Stock",
    "SyncObj",
    "SyncObjConf",
    "surroundings",
]
