"""Invariant 17: replicas at the same index hold the same bytes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from apply_driver import ApplyDriver
from dict_view import DictView
from mailbox_driver import (
    DAY_MS,
    Append,
    Copy,
    CreateAccount,
    CreateMailbox,
    DeleteMailbox,
    Deliver,
    Driver,
    Expunge,
    Item,
    ModifyKeywords,
    Move,
    To,
    Undelete,
    UpdateMemberships,
    Which,
)

SUPPORT = Path(__file__).parents[1] / "support"


def scenario() -> str:
    """A digest of every effect and reply of a busy hour."""
    mail = ApplyDriver()
    names = [f"user {number}" for number in range(7)]
    mail.run(*(CreateAccount(name, quota_messages=20) for name in names))
    mail.run(*(CreateMailbox(name, f"box {n}", role=n) for name in names for n in (2, 7, 9)))
    for number in range(10):
        words = tuple(f"word{(number * k) % 11}" for k in range(6))
        to = tuple(To(name, ("1", "3"), words) for name in names)
        mail.run(
            Deliver(b"m", to, message_id=f"{number}@x", references=(f"{number // 3}@x", "r@x")),
            Append(names[number % 7], (Item(b"a", keywords=words), Item(b"b"))),
        )
    for number, name in enumerate(names):
        words = tuple(f"word{(number * k) % 7}" for k in range(5))
        inbox = Which(mailbox="1", uids=((1, 9),))
        mail.run(
            ModifyKeywords(name, inbox, add=words, remove=("word9", "word8"), deleted=True),
            UpdateMemberships(name, inbox, add=("4", "2"), remove=("3",)),
            Copy(name, inbox, "2", duplicate=True),
            Move(name, Which(mailbox="1", uids=((2, 4),)), "3"),
            Expunge(name, Which(ids=("1", "2", "3"))),
            DeleteMailbox(name, "4", force=True),
            Undelete(name),
        )
        mail.at(mail.now_ms + 3 * DAY_MS)
        mail.work()
    digest = hashlib.sha256()
    rows = rows_of(mail)
    for key in sorted(rows):
        digest.update(key + b"\0" + rows[key] + b"\0")
    return digest.hexdigest()


def rows_of(mail: ApplyDriver) -> dict[bytes, bytes]:
    """All that a store holds."""
    assert isinstance(mail.view, DictView)
    return mail.view.rows


def test_processes_agree_whatever_their_hash_seed() -> None:
    """No effect depends on the order of a set or on anything else of one process."""
    code = "import test_determinism; print(test_determinism.scenario())"
    path = os.pathsep.join([str(Path(__file__).parent), str(SUPPORT), *sys.path])
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert digests == {scenario()}


def test_a_replica_that_replays_the_log_gets_there_too(mail: Driver) -> None:
    """Applying the whole log again to an empty view gives the same rows; bodies are not needed."""
    assert isinstance(mail, ApplyDriver)
    mail.run(CreateAccount("a"), CreateAccount("b"))
    mail.run(Deliver(b"x", (To("a"), To("b"))), Append("a", (Item(b"y"),)))
    late = ApplyDriver()
    for entry in mail.entries:
        late.apply(type(entry)(entry.index, entry.term, entry.kind, entry.payload))
    assert rows_of(late) == rows_of(mail)
