"""Patterns of accounts: what they match, how a certificate says them."""

from __future__ import annotations

import pytest

from mailraft.v1 import account_pb2, batch_pb2, cluster_pb2, delivery_pb2
from mailraft.wire import accounts, errors
from mailraft.wire.accounts import Accounts


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("ada", ["ada"], ["", "Ada", "adam", "bada"]),
        ("team-*", ["team-", "team-a", "team-*"], ["team", "a-team-b", "Team-a"]),
        ("*@a.example", ["x@a.example", "@a.example"], ["a.example", "x@a.example.org"]),
        ("a*a", ["aa", "aba"], ["a", "ab", "ba"]),
        ("*", ["", "anybody"], []),
        ("[a-z]?", ["[a-z]?"], ["ab", "b"]),
        ("jürgen/*", ["jürgen/1"], ["jurgen/1"]),
    ],
)
def test_one_star_stands_for_anything(pattern: str, matching: list[str], others: list[str]) -> None:
    """And nothing else has a meaning of its own. A certificate says it, whatever is in it."""
    limited = accounts.of_uris([accounts.uri_of(pattern), "spiffe://other/of/nobody"])
    assert limited == Accounts((pattern,))
    assert [each for each in matching if each not in limited] == []
    assert [each for each in others if each in limited] == []


def test_without_patterns_all_accounts_are_meant() -> None:
    """Foreign URIs of a certificate change nothing in that."""
    everybody = accounts.of_uris(["https://example.org/x"])
    assert not everybody.limited
    assert "anybody" in everybody


@pytest.mark.parametrize("uri", ["", "a*b*", "%ff", "x" * 256, "*" * 2])
def test_what_is_no_pattern_does_not_open_all_accounts(uri: str) -> None:
    """It is an error of the certificate."""
    with pytest.raises(ValueError, match=r"."):
        accounts.of_uris([accounts.URI_PREFIX + uri])


def test_a_request_of_nobodys_account_passes_only_where_it_tells_of_none() -> None:
    """The map of the cluster does; a list of accounts does not."""
    limited = Accounts(("a",))
    asked = cluster_pb2.GetClusterMapRequest()
    path = "/mailraft.v1.ClusterService/GetClusterMap"
    assert accounts.narrowed(path, asked, limited).request is asked
    with pytest.raises(errors.AccountNotAllowedError):
        accounts.narrowed(
            "/mailraft.v1.AccountService/ListAccounts",
            account_pb2.ListAccountsRequest(),
            limited,
        )


def test_what_is_left_of_a_request_is_the_request_without_the_rest() -> None:
    """Of a batch in a batch a delivery to anybody else is refused whole; the request itself, which
    others may hold, is not changed.
    """
    limited = Accounts(("a*",))
    two = [delivery_pb2.Recipient(account_id=each) for each in ("a1", "b1")]
    deliver = delivery_pb2.DeliverMessagesRequest(
        deliveries=[delivery_pb2.Delivery(recipients=two)]
    )
    request = batch_pb2.ExecuteRequest(
        items=[
            batch_pb2.BatchItem(deliver_messages=deliver),
            batch_pb2.BatchItem(get_account=account_pb2.GetAccountRequest(account_id="a1")),
            batch_pb2.BatchItem(),
        ]
    )
    before = request.SerializeToString()
    left = accounts.narrowed("", request, limited)
    assert left.refused == 1
    assert list(left.request.items) == list(request.items)[1:]
    answer = batch_pb2.ExecuteResponse(results=[batch_pb2.BatchResult(), batch_pb2.BatchResult()])
    codes = [each.error.code for each in left.restored(answer).results]
    assert codes == [errors.AccountNotAllowedError.code.value[0], 0, 0]
    assert request.SerializeToString() == before
