"""What must hold of a finished history. Each check names its property in what it raises."""

from __future__ import annotations

from tests.sim.world import READ, Operation, PropertyError, World


def check_all(world: World) -> None:
    check_log_matching(world)
    for group in world.groups:
        check_history(world, group)


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
    agreed = [index for index in a.keys() & b.keys() if a[index][0] == b[index][0]]
    if not agreed:
        return
    for index in range(min(a.keys() & b.keys()), max(agreed) + 1):
        if a.get(index) != b.get(index):
            raise PropertyError(
                f"log matching: group {group} differs at {index} below {max(agreed)}"
            )


def check_history(world: World, group: int) -> None:
    """Nothing acknowledged lost, each append once, and linearizability per account.

    All operations are ordered by their log index, so it is enough that this order agrees with real
    time (what completed before another began stands before it) and that reads saw what precedes them.
    """
    state: dict[bytes, bytes] = {}
    by_index: dict[int, bytes] = {}
    for index, payload in world.applied_entries(group):
        if not payload:
            continue
        account, value = payload.split(b":", 1)
        by_index[index] = state.get(account, b"")
        if value != READ:
            state[account] = state.get(account, b"") + value + b","
    done = [op for op in world.operations if op.group == group and op.index]
    for operation in done:
        if operation.value == READ:
            if operation.seen != by_index.get(operation.index):
                raise PropertyError(
                    f"linearizability: {operation} saw something else than its past"
                )
        elif state.get(operation.account, b"").split(b",").count(operation.value) != 1:
            raise PropertyError(f"nothing acknowledged lost: {operation} is not there once")
    _check_real_time(done)


def _check_real_time(done: list[Operation]) -> None:
    highest = 0
    completions = sorted(done, key=lambda op: op.completed)
    position = 0
    for operation in sorted(done, key=lambda op: op.invoked):
        while position < len(completions) and completions[position].completed < operation.invoked:
            highest = max(highest, completions[position].index)
            position += 1
        if operation.index < highest:
            raise PropertyError(
                f"linearizability: {operation} stands at {operation.index}, before {highest} "
                "which was complete when it began"
            )
