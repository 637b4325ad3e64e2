"""Takes out, one at a time, the code that keeps an invariant, and shows that its test sees it:
`make contract-mutants`.

A mutant is a line of node/mailstore written otherwise, and the test that must fail then. Functions
get the mutated code in place, so it counts wherever they were imported.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# What is taken out is of the state machine, and so is who sees it.
os.environ["MAILRAFT_CONTRACT_LEVELS"] = "machine"


@dataclass(frozen=True)
class Mutant:
    """One line, and what it becomes."""

    invariant: int  # of shared/mail-semantics.md
    promise: str  # what is broken
    module: str  # of node/mailstore
    old: str
    new: str
    test: str  # file::name, without test_ and .py


MUTANTS = (
    Mutant(
        1,
        "UIDs are never given again",
        "memberships",
        "mailbox.total_messages -= 1",
        "mailbox.total_messages -= 1; mailbox.uid_next = min(mailbox.uid_next, uid)",
        "expunging::uids_are_never_given_again",
    ),
    Mutant(
        2,
        "UIDNEXT changes only when mail is added",
        "memberships",
        "mailbox.highest_modseq = account.modseq",
        "mailbox.highest_modseq = account.modseq; mailbox.uid_next += 1",
        "expunging::uidnext_stays_where_mail_goes",
    ),
    Mutant(
        3,
        "a recreated mailbox has another UIDVALIDITY",
        "account_change",
        "following = self.record.last_uid_validity + 1",
        "following = 1",
        "mailboxes::a_recreated_mailbox_is_another_one",
    ),
    Mutant(
        3,
        "a recreated account has higher UIDVALIDITYs",
        "accounts",
        "record.last_uid_validity = max(command.last_uid_validity, earlier.last_uid_validity)",
        "pass",
        "deleting_accounts::a_new_account_begins_above_the_old",
    ),
    Mutant(
        4,
        "every change has a higher MODSEQ",
        "account_change",
        "self.record.modseq = self.modseq",
        "self.record.modseq = max(1, self.record.modseq)",
        "changes_and_limits::every_change_has_a_higher_modseq",
    ),
    Mutant(
        5,
        "what is destroyed is told",
        "expunge",
        "account.destroyed(_MESSAGE, last.message, thread=last.thread)",
        "pass",
        "expunging::an_undeleted_message_is_told_as_created",
    ),
    Mutant(
        5,
        "UIDs that vanish are told",
        "changes_rows",
        'overlay.put(keys.vanished(prefix, mailbox, modseq, uid), b"")',
        "pass",
        "expunging::expunge_by_uid_is_of_one_mailbox",
    ),
    Mutant(
        5,
        "changes are held for thirty days",
        "trimming",
        "if change.time_ms > oldest_ms or",
        "if",
        "upkeep::changes_are_held_for_thirty_days",
    ),
    Mutant(
        6,
        "a conditional change leaves the modified alone",
        "keywords",
        "each.modseq > command.unchanged_since",
        "False",
        "keywords::a_conditional_change_touches_exactly_the_unmodified",
    ),
    Mutant(
        6,
        "UNCHANGEDSINCE 0 is a value",
        "keywords",
        'command.HasField("unchanged_since") and',
        "command.unchanged_since > 0 and",
        "keywords::zero_is_a_value_of_unchanged_since",
    ),
    Mutant(
        7,
        "+A and +B leave both",
        "keywords",
        "(set(before.keywords) - self.remove) | self.add",
        "self.add",
        "keywords::concurrent_additions_leave_both",
    ),
    Mutant(
        7,
        "the flag Deleted is of one mailbox",
        "memberships",
        "    membership.deleted = deleted",
        "    for each in message.memberships:\n        each.deleted = deleted",
        "keywords::deleted_is_of_one_mailbox",
    ),
    Mutant(
        8,
        "the quota is never passed",
        "messages",
        "(0 < record.quota_bytes < used_bytes)",
        "False",
        "changes_and_limits::quota_is_exact",
    ),
    Mutant(
        8,
        "what is expunged uses no quota",
        "expunge",
        "record.used_bytes -= last.size_bytes",
        "pass",
        "expunging::undelete_restores_the_message",
    ),
    Mutant(
        8,
        "an upload fits the quota",
        "uploads",
        "0 < account.quota_bytes < account.used_bytes + asked.size_bytes",
        "False",
        "uploading::the_quota_holds_for_uploads",
    ),
    Mutant(
        8,
        "what was uploaded counts when it is a message",
        "blobs",
        "        position.ordinal,\n        blob.size_bytes,",
        "        position.ordinal,\n        0,",
        "uploading::the_quota_holds_for_uploads",
    ),
    Mutant(
        9,
        "unseen equals a scan",
        "memberships",
        "mailbox.unseen_messages += unseen",
        "pass",
        "keywords::unseen_is_exact",
    ),
    Mutant(
        10,
        "a moved message is in one mailbox",
        "moves",
        "            memberships.leave(account, message, left)",
        "            pass",
        "moving::a_move_loses_and_doubles_nothing",
    ),
    Mutant(
        11,
        "a refused append leaves nothing",
        "machine",
        "layer = overlay.child()\n    reply = run(layer)\n    layer.commit()",
        "reply = run(overlay)",
        "adding_mail::a_batch_append_is_all_or_nothing",
    ),
    Mutant(
        12,
        "fetched bytes are the appended bytes",
        "blobs",
        "context.body_base + body.ordinal",
        "context.body_base",
        "adding_mail::fetched_bytes_are_the_appended_bytes",
    ),
    Mutant(
        12,
        "a part goes where it belongs",
        "uploads",
        "upload is None or asked.offset_bytes != stored_bytes",
        "upload is None",
        "uploading::a_part_goes_where_it_belongs",
    ),
    Mutant(
        13,
        "a rename takes the children along",
        "mailbox_change",
        "mailbox.parent, mailbox.name = parent, name",
        "mailbox.parent, mailbox.name = parent, name; "
        "[_drop_name(account, account.mailbox(n)) for n in _children(account, mailbox.mailbox)]",
        "mailboxes::renaming_a_parent_renames_the_children",
    ),
    Mutant(
        13,
        "an old path is gone",
        "mailbox_change",
        "    _drop_name(account, mailbox)\n    mailbox.parent",
        "    mailbox.parent",
        "mailboxes::a_mailbox_moves_with_its_children",
    ),
    Mutant(
        14,
        "no body outlives its references",
        "blobs",
        "    blob.references -= 1",
        "    pass",
        "upkeep::no_unreferenced_body_outlives_its_grace",
    ),
    Mutant(
        14,
        "bodies that nobody took are freed",
        "machine",
        "blobs.free_untaken(overlay, context)",
        "pass",
        "upkeep::no_unreferenced_body_outlives_its_grace",
    ),
    Mutant(
        14,
        "a body stays while anybody refers to it",
        "blobs",
        "    blob.references += 1",
        "    blob.references = 1",
        "deleting_accounts::its_bytes_are_freed",
    ),
    Mutant(
        14,
        "a dropped upload leaves nothing",
        "uploads",
        "            blobs.let_go(overlay, each.index, each.ordinal, now_ms)",
        "            pass",
        "uploading::a_dropped_upload_leaves_nothing",
    ),
    Mutant(
        14,
        "an upload that is not finished goes",
        "uploads",
        "    chores.enqueue(overlay, upload.expires_ms, chores.EXPIRE_UPLOADS, prefix)",
        "    pass",
        "uploading::an_upload_that_nobody_names_goes",
    ),
    Mutant(
        14,
        "all parts of a large message go with it",
        "blobs",
        "bodies.update(((each.index, each.ordinal), None) for each in blob.parts)",
        "pass",
        "uploading::a_message_keeps_all_its_parts",
    ),
    Mutant(
        15,
        "an upload's request is of one content",
        "uploads",
        "(upload.size_bytes, upload.sha256) != (asked.size_bytes, asked.sha256)",
        "False",
        "uploading::a_request_is_of_one_upload",
    ),
    Mutant(
        15,
        "a retry answers the same",
        "shard_clock",
        "overlay.put(keys.request(bucket, request_id, account), record.SerializeToString())",
        "pass",
        "retries::a_retry_answers_the_same",
    ),
    Mutant(
        16,
        "no account reads another's bytes",
        "blobs",
        "blob is None or overlay.get(access) is None",
        "blob is None",
        "changes_and_limits::no_account_reads_anothers_bytes",
    ),
    Mutant(
        17,
        "replicas agree byte for byte",
        "machine",
        "now_ms = shard_clock.advance(overlay, command.time_ms)",
        "now_ms = __import__('time').monotonic_ns()",
        "determinism::a_replica_that_replays_the_log_gets_there_too",
    ),
    Mutant(
        18,
        "a new account is a later life",
        "accounts",
        "max(context.entry_index, earlier.creation_index + 1)",
        "context.entry_index",
        "deleting_accounts::a_new_account_begins_above_the_old",
    ),
    Mutant(
        19,
        "acknowledged mail is listed",
        "memberships",
        "overlay.put(keys.received(prefix, number, message.internal_time_ms, uid), target)",
        "pass",
        "pages::every_order_lists_all_once",
    ),
)


@contextlib.contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The module's functions with the mutated code."""
    module = importlib.import_module(f"mailraft.node.mailstore.{mutant.module}")
    source = inspect.getsource(module)
    assert mutant.old in source, f"{mutant.module} has no {mutant.old!r} any more"
    mutated = types.ModuleType(module.__name__)
    mutated.__dict__.update(__package__=module.__package__, __file__=module.__file__)
    sys.modules[module.__name__] = mutated  # dataclasses look themselves up
    try:
        exec(  # noqa: S102 - our own source
            compile(source.replace(mutant.old, mutant.new), f"<{mutant.module}>", "exec"),
            mutated.__dict__,
        )
    finally:
        sys.modules[module.__name__] = module
    before = []
    for function, other in _functions(module, mutated):
        before.append((function, function.__code__))
        function.__code__ = other.__code__
    try:
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def _functions(
    one: object, other: object
) -> Iterator[tuple[types.FunctionType, types.FunctionType]]:
    """Those of a module or class, each with the one of that name in the other."""
    for name, value in list(vars(one).items()):  # tidy: a plain dict
        twin = vars(other).get(name)
        if isinstance(value, types.FunctionType) and isinstance(twin, types.FunctionType):
            if not value.__closure__ and not twin.__closure__:
                yield value, twin
        elif isinstance(value, type) and isinstance(twin, type) and twin is not value:
            yield from _functions(value, twin)


def fails(*tests: str) -> bool:
    """Runs tests in this process, as its code is now."""
    parts = [test.split("::") for test in tests]
    nodes = [f"{FOLDER / f'test_{file}.py'}::test_{name}" for file, name in parts]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *nodes])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        raise RuntimeError(f"{nodes} were not run:\n{output.getvalue()}")
    return code == pytest.ExitCode.TESTS_FAILED


def caught(mutant: Mutant) -> bool:
    """Whether the test of the invariant fails without what keeps it."""
    with applied(mutant):
        return fails(mutant.test)


def main() -> int:
    """A line per mutant; 1 when one survives."""
    survivors = 0
    if fails(*dict.fromkeys(mutant.test for mutant in MUTANTS)):
        print("the tests fail as it is: no mutant would tell anything")
        return 1
    for mutant in MUTANTS:
        seen = caught(mutant)
        survivors += not seen
        how = f"seen by test_{mutant.test.partition('::')[2]}" if seen else "SURVIVES"
        print(f"{mutant.invariant:2}  {mutant.promise:48} {how}", flush=True)
    print(f"{len(MUTANTS)} mutants, {survivors} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
