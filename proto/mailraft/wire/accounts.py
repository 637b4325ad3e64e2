"""Which accounts a caller may act on: patterns of its certificate, and what they do to a request.

A pattern is an account id in which one `*` stands for anything, or nothing. It is in a certificate
as a URI among its alternative names (`mailraft:accounts/team-*`); without any, all accounts are
meant. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

from mailraft.v1 import batch_pb2, delivery_pb2
from mailraft.wire import errors, limits

URI_PREFIX = "mailraft:accounts/"
PATTERNS_MAX = 64
# Calls without an account that tell nothing of any.
_OF_NOBODY = ("/mailraft.v1.ClusterService/", "/grpc.")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Those that match one of the patterns; without patterns: all."""

    patterns: tuple[str, ...] = ()

    @property
    def limited(self) -> bool:
        return bool(self.patterns)

    def __contains__(self, account_id: str) -> bool:
        return not self.patterns or any(_matches(each, account_id) for each in self.patterns)

    def check(self, account_id: str) -> None:
        """Raises AccountNotAllowedError, which does not repeat what was asked for."""
        if account_id not in self:
            raise errors.AccountNotAllowedError("the certificate is limited to other accounts")


ALL = Accounts()


def _matches(pattern: str, account_id: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return account_id == pattern
    long_enough = len(account_id) >= len(head) + len(tail)
    return long_enough and account_id.startswith(head) and account_id.endswith(tail)


def checked(pattern: str) -> str:
    """The same. Raises ValueError unless it is a pattern."""
    if not 1 <= len(pattern.encode()) <= limits.ACCOUNT_ID_MAX_BYTES:
        raise ValueError(f"a pattern has 1 to {limits.ACCOUNT_ID_MAX_BYTES} bytes")
    if pattern.count("*") > 1:
        raise ValueError(f"{pattern!r} has more than one *")
    return pattern


def uri_of(pattern: str) -> str:
    """How a certificate says it. Raises ValueError."""
    return URI_PREFIX + quote(checked(pattern), safe="*@")


def of_uris(uris: Iterable[str]) -> Accounts:
    """What the URIs of a certificate limit it to; others than ours say nothing.

    Raises ValueError for one of ours that is no pattern: it must not open what it was to close.
    """
    found = [uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)]
    if len(found) > PATTERNS_MAX:
        raise ValueError(f"more than {PATTERNS_MAX} patterns")
    return Accounts(tuple(checked(unquote_to_bytes(each).decode()) for each in found))


# ---- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A request without the parts that its caller may not ask for, and what puts their refusals
    into its response. request None: nothing is left of it, `restored(None)` answers it.
    """

    request: Any
    refused: int  # parts
    restored: Callable[[Any], Any]


def narrowed(method: str, request: Any, accounts: Accounts) -> Narrowed:
    """What is left of a request for a limited caller.

    Of calls that carry parts of many callers (a client joins what its callers ask for) the parts
    that are not allowed are refused alone. Raises AccountNotAllowedError for all else.
    """
    if isinstance(request, delivery_pb2.DeliverMessagesRequest):
        return _narrowed_deliveries(request, accounts)
    if isinstance(request, batch_pb2.ExecuteRequest):
        return _narrowed_items(request, accounts)
    _check(method, request, accounts)
    return Narrowed(request, 0, _same)


def _same(response: Any) -> Any:
    return response


def _check(method: str, request: Any, accounts: Accounts) -> None:
    account_id = getattr(request, "account_id", None)
    if account_id is not None:
        accounts.check(account_id)
    elif not method.startswith(_OF_NOBODY):
        raise errors.AccountNotAllowedError(f"{method} is about all accounts")


def _narrowed_deliveries(
    request: delivery_pb2.DeliverMessagesRequest, accounts: Accounts
) -> Narrowed:
    allowed = [
        [each.account_id in accounts for each in delivery.recipients]
        for delivery in request.deliveries
    ]
    refused = sum(not one for each in allowed for one in each)
    if not refused:
        return Narrowed(request, 0, _same)
    left = delivery_pb2.DeliverMessagesRequest()
    left.CopyFrom(request)
    for number in reversed(range(len(allowed))):
        if not any(allowed[number]) and allowed[number]:
            del left.deliveries[number]
        elif not all(allowed[number]):
            del left.deliveries[number].recipients[:]
            left.deliveries[number].recipients.extend(
                _only(request.deliveries[number].recipients, allowed[number])
            )

    def restored(response: Any) -> delivery_pb2.DeliverMessagesResponse:
        answers = iter(response.results if response is not None else ())
        whole = delivery_pb2.DeliverMessagesResponse()
        if response is not None:
            whole.CopyFrom(response)
            del whole.results[:]
        for each in allowed:
            result = whole.results.add()
            if any(each) or not each:
                result.CopyFrom(next(answers))
            told = list(result.recipients)
            del result.recipients[:]
            _fill(result, each, iter(told))
        return whole

    return Narrowed(left if left.deliveries else None, refused, restored)


def _fill(
    result: delivery_pb2.DeliveryResult,
    allowed: Sequence[bool],
    answers: Iterator[delivery_pb2.RecipientResult],
) -> None:
    error = errors.AccountNotAllowedError("the certificate is limited to other accounts")
    for one in allowed:
        if one:
            result.recipients.append(next(answers))
        else:
            result.recipients.add(
                code=error.code.value[0], reason=error.reason, message=error.message
            )


def _narrowed_items(request: batch_pb2.ExecuteRequest, accounts: Accounts) -> Narrowed:
    allowed = [_allowed(item, accounts) for item in request.items]
    refused = allowed.count(False)
    if not refused:
        return Narrowed(request, 0, _same)
    left = batch_pb2.ExecuteRequest()
    left.CopyFrom(request)
    del left.items[:]
    left.items.extend(_only(request.items, allowed))
    error = errors.AccountNotAllowedError("the certificate is limited to other accounts")

    def restored(response: Any) -> batch_pb2.ExecuteResponse:
        answered = batch_pb2.ExecuteResponse()
        if response is not None:
            answered.MergeFromString(response.SerializeToString())  # it may be ready.Ready
        answers = iter(answered.results)
        whole = batch_pb2.ExecuteResponse()
        for one in allowed:
            if one:
                whole.results.append(next(answers))
            else:
                whole.results.add(error=error.to_status())
        return whole

    return Narrowed(left if left.items else None, refused, restored)


def _allowed(item: batch_pb2.BatchItem, accounts: Accounts) -> bool:
    field = item.WhichOneof("request")
    if field is None:
        return True  # and answered as what it is: no request
    inner = getattr(item, field)
    if isinstance(inner, delivery_pb2.DeliverMessagesRequest):
        return all(
            each.account_id in accounts
            for delivery in inner.deliveries
            for each in delivery.recipients
        )
    try:
        _check("", inner, accounts)
    except errors.AccountNotAllowedError:
        return False
    return True


def _only(items: Iterable[Item], allowed: Sequence[bool]) -> list[Item]:
    return [item for item, one in zip(items, allowed, strict=True) if one]
