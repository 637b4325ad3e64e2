"""What a watch knows between two streams: up to where each account, or a shard, was told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mailraft.v1 import change_pb2, common_pb2
from mailraft.wire import errors

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 5.0


class _Retried:
    """How long to wait before another stream."""

    def __init__(self) -> None:
        self._failures = 0

    def failed(self, error: errors.MailraftError) -> None:
        """A stream broke; raises the error if another one would break the same way."""
        passing = errors.UnavailableError | errors.OverloadedError | errors.DeadlineExceededError
        if not isinstance(error, passing):
            raise error
        self._failures += 1

    def pause_s(self) -> float:
        """How long to wait before the next stream: longer with each failure in a row."""
        if not self._failures:
            return 0.0
        return min(PAUSE_MAX_S, PAUSE_FIRST_S * (1 << min(self._failures - 1, 10)))


class WatchingShard(_Retried):
    """The cursor that the next stream of a shard begins at."""

    def __init__(self, shard: int, cursor: str) -> None:
        super().__init__()
        self._shard, self._cursor = shard, cursor

    def request(self) -> change_pb2.WatchShardRequest:
        """What to ask on a new stream."""
        return change_pb2.WatchShardRequest(shard=self._shard, cursor=self._cursor)

    def take(self, response: change_pb2.WatchShardResponse) -> None:
        """It is told."""
        self._cursor = response.cursor
        self._failures = 0

    def ended(self) -> None:
        """A stream ended without an error."""
        self._failures += 1


class Watching(_Retried):
    """Decides what is told and what is asked again; whoever has it opens the streams."""

    def __init__(
        self,
        accounts: Iterable[str] | Mapping[str, str],
        types: Sequence[common_pb2.ObjectType.ValueType],
    ) -> None:
        super().__init__()
        if isinstance(accounts, str):
            raise TypeError("`accounts` is a list of accounts, not one string")
        given = accounts if isinstance(accounts, Mapping) else dict.fromkeys(accounts, "")
        self.accounts: dict[str, str] = dict(given)  # with the last state that was told
        self.broken = False
        self._types = types
        self._begun: set[str] = set()  # whose beginning was told

    def requests(self) -> list[change_pb2.WatchRequest]:
        """What to ask on a new stream."""
        self.broken = False
        return [
            change_pb2.WatchRequest(
                account_id=account_id,
                subscribe=change_pb2.WatchSubscribe(since_state=state, types=self._types),
            )
            for account_id, state in self.accounts.items()
        ]

    def take(self, response: change_pb2.WatchResponse) -> bool:
        """Whether the caller is to be told of it."""
        account_id = response.account_id
        match response.WhichOneof("event"):
            case "change":
                if account_id not in self.accounts:
                    return False
                self.accounts[account_id] = response.change.state
                again = response.change.subscribed and account_id in self._begun
                self._begun.add(account_id)
                if not response.change.subscribed:
                    self._failures = 0
                return not again
            case "end":
                end = response.end
                error = errors.by_reason(end.reason, end.message, code=end.code)
                if error.retryable or isinstance(error, errors.UnavailableError):
                    self.broken = True
                    self._failures += 1
                    return False
                return self.accounts.pop(account_id, None) is not None
            case _:
                self._failures = 0
                return False

    def ended(self) -> None:
        """A stream ended without an error."""
        self._failures += not self.broken
