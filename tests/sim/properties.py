"""What must hold of a finished history. Each check names its property in what it raises."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from tests.sim.clients import Operation
from tests.sim.watch import PropertyError
from tests.sim.world import World


def check_all(world: World, operations: Iterable[Operation]) -> None:
    """Of a world in which all is quiet again. Raises PropertyError."""
    check_log_matching(world)
    for group in world.groups:
        check_history(world, group, [op for op in operations if op.group == group])


def check_log_matching(world: World) -> None:
    """Raft section 5.3: two logs that hold the same (index, term) are the same up to there."""
    for group in world.groups:
        logs = []
        for node in world.nodes.values():
            stored = node.disk.load(group)
            reader = node.disk.log(group)
            entries = reader.entries(stored.base.index + 1, stored.last_index, 1 << 40)
            logs.append({entry.index: (entry.term, entry.payload) for entry in entries})
        for position, log in enumerate(logs):
            for other in logs[position + 1 :]:
                _compare(group, log, other)


def _compare(group: int, a: dict[int, tuple[int, bytes]], b: dict[int, tuple[int, bytes]]) -> None:
    shared = a.keys() & b.keys()
    agreed = [index for index in shared if a[index][0] == b[index][0]]
    if not agreed:
        return
    for index in range(min(shared), max(agreed) + 1):
        if a.get(index) != b.get(index):
            raise PropertyError(
                f"log matching: group {group} differs at {index} below {max(agreed)}"
            )


def check_history(world: World, group: int, operations: Iterable[Operation]) -> None:
    """Nothing acknowledged lost, each append once, and linearizability per account.

    All operations are ordered by their log index, so it is enough that this order agrees with real
    time (what completed before another began stands before it) and that reads saw what precedes
    them.
    """
    states = _states(world, group)
    done = [operation for operation in operations if operation.index]
    for operation in done:
        indexes, contents = states.get(operation.account, ([], [b""]))
        if operation.value is None:
            past = contents[bisect_right(indexes, operation.index)]
            if operation.seen != past:
                raise PropertyError(f"linearizability: {operation} did not see its past")
        elif contents[-1].split(b",").count(operation.value) != 1:
            raise PropertyError(f"nothing acknowledged lost: {operation} is not there once")
    _check_real_time(done)


def _states(world: World, group: int) -> dict[bytes, tuple[list[int], list[bytes]]]:
    """Per account: where it changed, and its content before the first change and after each."""
    states: dict[bytes, tuple[list[int], list[bytes]]] = {}
    seen: set[bytes] = set()
    for index, payload in world.watch.applied_entries(group):
        if b":" not in payload:
            continue
        account, value = payload.split(b":", 1)
        if value in seen:
            continue  # a retry
        seen.add(value)
        indexes, contents = states.setdefault(account, ([], [b""]))
        indexes.append(index)
        contents.append(contents[-1] + value + b",")
    return states


def _place(operation: Operation) -> int:
    """Where it stands in the order of all: a read behind the entry up to which it saw."""
    return 2 * operation.index + (operation.value is None)


def _check_real_time(done: list[Operation]) -> None:
    highest = 0
    completions = sorted(done, key=lambda op: op.completed)
    position = 0
    for operation in sorted(done, key=lambda op: op.invoked):
        while position < len(completions) and completions[position].completed < operation.invoked:
            highest = max(highest, _place(completions[position]))
            position += 1
        if _place(operation) < highest:
            raise PropertyError(
                f"linearizability: {operation} stands at {operation.index}, before "
                f"{highest // 2}, which was complete when it began"
            )
