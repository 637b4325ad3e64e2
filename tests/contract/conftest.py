"""The store under test: a state machine alone, and a whole node that is asked over gRPC.

MAILRAFT_CONTRACT_LEVELS=machine leaves the node out, as the mutants do. Drivers of a cluster are in
tests/cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from apply_driver import ApplyDriver
from mailbox_driver import CreateAccount, Done, Driver
from one_node import OneNode

LEVELS = os.environ.get("MAILRAFT_CONTRACT_LEVELS", "machine node").split()

# What no service passes on, or nobody outside of a node can see: why a test is of the machine only.
_FEED = "the feed as it is kept: callers are told each object once (test_on_node)"
_FORM = "a form that services refuse before the machine is asked: empty, or twice the same"
_BELOW = "looks below what a Driver shows: steps, paths, queries or how many bodies are kept"
_PARTS = "parts one by one: to callers an upload is one stream (test_services_upload)"
MACHINE_ONLY = {
    **dict.fromkeys(
        (
            "test_a_rename_is_no_change_of_mail",
            "test_acknowledged_mail_is_everywhere",
            "test_an_undeleted_message_is_told_as_created",
            "test_every_change_has_a_higher_modseq",
            "test_expunge_raises_highest_modseq",
        ),
        _FEED,
    ),
    **dict.fromkeys(
        (
            "test_a_delivery_answers_for_each_recipient",
            "test_accounts_with_similar_names_do_not_mix",
            "test_fetched_bytes_are_the_appended_bytes",
            "test_mail_goes_where_it_is_sent",
            "test_quota_is_exact",
        ),
        _FORM,
    ),
    **dict.fromkeys(
        (
            "test_a_full_memory_refuses",
            "test_a_large_account_is_gone_at_once",
            "test_a_large_mailbox_is_gone_at_once",
            "test_a_mailbox_moves_with_its_children",
            "test_a_quiet_account_costs_nothing",
            "test_a_recreated_mailbox_is_another_one",
            "test_a_replica_that_replays_the_log_gets_there_too",
            "test_a_token_of_another_listing_is_refused",
            "test_a_token_stays_valid_while_mail_arrives",
            "test_accounts_of_a_shard",
            "test_an_etag_guards_a_rename",
            "test_changes_are_held_for_thirty_days",
            "test_changes_while_a_mailbox_is_cleared",
            "test_collecting_goes_in_steps",
            "test_its_bytes_are_freed",
            "test_mailboxes_by_path_and_role",
            "test_messages_by_uid",
            "test_no_referenced_body_is_missing",
            "test_no_unreferenced_body_outlives_its_grace",
            "test_renaming_a_parent_renames_the_children",
            "test_retention_goes_in_steps",
            "test_uid_ranges_walk_in_steps",
            "test_what_cannot_come_back_is_freed",
        ),
        _BELOW,
    ),
    **dict.fromkeys(
        (
            "test_a_dropped_upload_leaves_nothing",
            "test_a_message_keeps_all_its_parts",
            "test_a_part_goes_where_it_belongs",
            "test_a_request_is_of_one_upload",
            "test_an_upload_that_nobody_names_goes",
            "test_the_quota_holds_for_uploads",
        ),
        _PARTS,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for a store once a level."""
    if "level" in metafunc.fixturenames:
        only = metafunc.function.__name__ in MACHINE_ONLY
        metafunc.parametrize("level", ["machine"] if only else LEVELS)


@pytest.fixture(scope="session")
def node() -> Iterator[OneNode]:
    """One for all tests; each has accounts of its own on it."""
    running = OneNode()
    yield running
    running.close()


@pytest.fixture
def mail(level: str, request: pytest.FixtureRequest) -> Driver:
    """An empty store."""
    if level == "machine":
        return ApplyDriver()
    node: OneNode = request.getfixturevalue("node")
    return node.driver()


@pytest.fixture
def alice(mail: Driver) -> str:
    """An account with an inbox, "1"."""
    (created,) = mail.run(CreateAccount("alice"))
    assert isinstance(created, Done)
    return "alice"
