"""Invariant 17: replicas at the same index hold the same bytes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from apply_driver import ApplyDriver
from mailbox_driver import Append, CreateAccount, CreateMailbox, Deliver, Driver, Item, To

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
    digest = hashlib.sha256()
    for key in sorted(mail.view.rows):
        digest.update(key + b"\0" + mail.view.rows[key] + b"\0")
    return digest.hexdigest()


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
    assert late.view.rows == mail.view.rows
