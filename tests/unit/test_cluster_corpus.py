import contextlib
import io
import mailbox
import tarfile
from pathlib import Path

import pytest
import zstandard

from mailraft.cluster import corpus
from mailraft.cluster.corpus import Corpus
from mailraft.cluster.demo_delivery import Plan
from mailraft.cluster.errors import CorpusError
from mailraft.wire.limits import MESSAGE_MAX_BYTES

MESSAGES = {
    "a/1.eml": b"Subject: one\n\nbody\n",
    "a/2.eml": b"\x00\xff no header, \r lone CR\r\n",
    "b/3.eml": b">From here\n>>From there\n",
}


def _packed(path: Path, members: dict[str, bytes]) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue()))


def _found(path: Path) -> dict[str, bytes]:
    return {message.name: message.raw for message in Corpus(path)}


def test_a_packed_folder(tmp_path: Path) -> None:
    """Messages of all archives come as they are; whole mbox files in them are left out."""
    _packed(tmp_path / "one.tar.zst", {**MESSAGES, "mbox/9.mbox": b"From x\n\n"})
    _packed(tmp_path / "two.tar.zst", {"c/4.eml": b"x"})
    assert _found(tmp_path) == {**MESSAGES, "c/4.eml": b"x"}
    assert _found(tmp_path / "two.tar.zst") == {"c/4.eml": b"x"}


def test_a_tree_of_messages(tmp_path: Path) -> None:
    """Every .eml at any depth, in a fixed order, and nothing else."""
    for name, content in {**MESSAGES, "a/readme.txt": b"no mail"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert _found(tmp_path) == MESSAGES
    assert [message.name for message in Corpus(tmp_path)] == list(MESSAGES)


def test_a_maildir(tmp_path: Path) -> None:
    """Messages in new and cur, of its folders too, and none in tmp."""
    for name, content in {
        "new/1.host": b"one",
        "cur/2.host:2,S": b"two",
        "tmp/3.host": b"not yet there",
        ".Sent/cur/4.host:2,S": b"three",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert sorted(_found(tmp_path).values()) == [b"one", b"three", b"two"]


MBOX = (
    b"From a@example.org Thu May 16 09:00:00 2024\n"
    b"Subject: one\n\nbody\n\n"
    b"From the text, not a separator\n>From quoted stays quoted\n\n"
    b"From MAILER-DAEMON Fri May 17 09:00:00 2024 +0200\n"
    b"Subject: two\n\ntext\nFrom within a paragraph, 09:00:00 2024\n\n"
)


def test_an_mbox_file(tmp_path: Path) -> None:
    """Separators and the empty line before them are taken off; quoting stays as found."""
    path = tmp_path / "saved"
    path.write_bytes(MBOX)
    assert list(_found(path).items()) == [
        (
            "saved#1",
            b"Subject: one\n\nbody\n\nFrom the text, not a separator\n>From quoted stays quoted\n",
        ),
        ("saved#2", b"Subject: two\n\ntext\nFrom within a paragraph, 09:00:00 2024\n"),
    ]


def test_an_mbox_file_of_python(tmp_path: Path) -> None:
    """What the mailbox module writes is read as it was put in."""
    path = tmp_path / "box"
    with contextlib.closing(mailbox.mbox(path)) as box:
        for content in (b"Subject: a\n\nx\n", b"Subject: b\n\ny\n"):
            box.add(content)
    assert list(_found(path).values()) == [b"Subject: a\n\nx\n", b"Subject: b\n\ny\n"]


def test_no_mail(tmp_path: Path) -> None:
    """A path without mail is refused with what was expected."""
    with pytest.raises(CorpusError, match="there is no corpus at"):
        Corpus(tmp_path / "nothing")
    with pytest.raises(CorpusError) as caught:
        Corpus(tmp_path)
    assert "Maildir" in caught.value.hint
    (tmp_path / "text").write_bytes(b"Hello")
    with pytest.raises(CorpusError, match="neither"):
        Corpus(tmp_path / "text")


@pytest.mark.parametrize("content", [b"not zstd at all", b""])
def test_a_damaged_archive(tmp_path: Path, content: bytes) -> None:
    """It is refused by name, and not taken as a short corpus."""
    (tmp_path / "x.tar.zst").write_bytes(content)
    with pytest.raises(CorpusError, match="cannot read the corpus"):
        _found(tmp_path)


def test_an_archive_that_ends_early(tmp_path: Path) -> None:
    """Half an archive is damage."""
    _packed(tmp_path / "x.tar.zst", {"a.eml": bytes(range(256)) * 4000})
    whole = (tmp_path / "x.tar.zst").read_bytes()
    (tmp_path / "x.tar.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match="cannot read the corpus"):
        _found(tmp_path)


def test_what_the_store_cannot_take_is_counted(tmp_path: Path) -> None:
    """Empty and too large messages are left out by name; the rest is repeated as asked."""
    sizes = {"ok": 3, "empty": 0, "limit": MESSAGE_MAX_BYTES, "large": MESSAGE_MAX_BYTES + 1}
    for name, size in sizes.items():
        (tmp_path / f"{name}.eml").write_bytes(b"x" * size)
    plan = Plan.of(Corpus(tmp_path), 5)
    assert (plan.messages, plan.repeats) == (6, 3)
    assert plan.left_out == ("empty.eml (0 bytes)", f"large.eml ({MESSAGE_MAX_BYTES + 1} bytes)")
    assert [message.name for message in plan] == ["limit.eml", "ok.eml"] * 3


def test_nothing_that_can_be_delivered(tmp_path: Path) -> None:
    """A corpus of empty messages is no corpus."""
    (tmp_path / "empty.eml").write_bytes(b"")
    with pytest.raises(CorpusError, match="no message"):
        Plan.of(Corpus(tmp_path), 1)


def test_the_messages_of_the_repository() -> None:
    """They are many kinds: line ends, NUL, bytes that are no UTF-8, nothing before the body."""
    raw = [message.raw for message in Corpus(corpus.default_path())]
    assert len(raw) >= 24
    assert len(set(raw)) == len(raw)
    assert any(b"\r\n" in each for each in raw)
    assert any(b"\n" in each and b"\r" not in each for each in raw)
    assert any(b"\0" in each for each in raw)
    assert any(len(line) > 998 for each in raw for line in each.split(b"\n"))
    assert any(not each.isascii() for each in raw)
