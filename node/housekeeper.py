"""Proposes what is due in the shards that this node leads: the rest of what was deleted, expunged
mail whose time is over, retention, old changes, bodies that nobody refers to (mailstore/chores.py).

Lazily: a few bounded steps a turn, one after the other in a shard, so that mail never waits behind
more than one of them. A step that is lost, or proposed twice, or by a leader that is none any more,
does no harm: what is due stays due until it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import chores
from mailraft.node.shard import Replica
from mailraft.wire import errors

log = logging.getLogger(__name__)

STEPS_PER_TURN_MAX = 4  # of one shard
PAUSE_S = 1.0  # between two looks at what is due
BUSY_PAUSE_S = 0.05  # while there is more
STEP_DEADLINE_S = 10.0


class Housekeeper:
    """One a node. `run` until cancelled."""

    def __init__(
        self,
        replicas: Callable[[], Iterable[Replica]],
        *,
        now_s: Callable[[], float],
        wall_ms: Callable[[], int],
        settle: Callable[[command_pb2.Command], None],
    ) -> None:
        self._replicas, self._now_s, self._wall_ms = replicas, now_s, wall_ms
        self._settle = settle

    async def run(self) -> None:
        while True:
            more = await self.turn()
            await asyncio.sleep(BUSY_PAUSE_S if more else PAUSE_S)

    async def turn(self) -> bool:
        """A few steps in every shard that is led here; whether more is due."""
        leading = [each for each in self._replicas() if each.leadership.leading]
        return any(await asyncio.gather(*map(self._turn_of, leading)))

    async def _turn_of(self, replica: Replica) -> bool:
        for _ in range(STEPS_PER_TURN_MAX):
            # Looked up anew for each step, since the step before may have changed it.
            due = chores.due_commands(replica.view, self._wall_ms(), 1)
            if not due:
                return False
            if not await self._step(replica, due[0]):
                return False
        return True

    async def _step(self, replica: Replica, command: command_pb2.Command) -> bool:
        command.time_ms = self._wall_ms()
        self._settle(command)
        try:
            done = await replica.propose(command, deadline_s=self._now_s() + STEP_DEADLINE_S)
        except errors.MailraftError as error:
            log.info("shard %d: upkeep waits: %s", replica.group, error)
            return False
        assert isinstance(done.reply, command_pb2.Reply)
        if done.reply.WhichOneof("outcome") == "refusal":
            # Never seen; it must not go on without a pause.
            log.error("shard %d refuses upkeep: %s", replica.group, done.reply.refusal.message)
            return False
        return True
