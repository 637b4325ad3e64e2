"""Bytes that nearly are what they should be: seeds, changed at random by a seeded generator."""

from __future__ import annotations

import csv
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mailraft.cluster.corpus import Corpus, default_path

INPUTS_DEFAULT = 3_000  # of a target, in `make test`; `make fuzz` asks for more
INPUT_MAX_BYTES = 256 * 1024
# The processor's time that one input may take. What is linear stays far below; the rest hangs.
INPUT_MAX_S = 2.0

_TOKENS = (
    *(bytes((byte,)) for byte in b'\n\r\0\xff \t:;="\\<>(),@%'),
    *(b"\r\n", b"\r\n\r\n", b"--", b"=?", b"?=", b"=?utf-8?q?", b"From ", b"*0*="),
    *(b"\x80" * 9 + b"\x01", b"\x08\0", b"\n\0", b"\x12\xff\xff\xff\xff\x0f"),
    b"Content-Type: multipart/mixed; boundary=x\n",
    b"Content-Type: message/rfc822\n\n",
)


def inputs() -> int:
    """How many inputs each target gets."""
    return int(os.environ.get("MAILRAFT_FUZZ_INPUTS", str(INPUTS_DEFAULT)))


def seed() -> int:
    """Where the generator begins; printed with a failure, to be given again."""
    return int(os.environ.get("MAILRAFT_FUZZ_SEED", "1"))


def changed(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, changed in a few places, or two of them joined."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + (1 << rng.randrange(10)))
        match rng.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * rng.randrange(1, 8)
            case 4:
                data[at:at] = rng.choice(_TOKENS) * (1 << rng.randrange(6))
            case 5:
                other = rng.choice(seeds)
                cut = rng.randrange(len(other) + 1)
                data[at:] = other[cut : cut + INPUT_MAX_BYTES]
            case 6:
                del data[at:]
            case _:
                data[at:end] = rng.randbytes(end - at)
    return bytes(data[:INPUT_MAX_BYTES])


_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    1_000,
    2**31 - 1,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
    -1,
    -(2**31),
    -(2**63),
)
_TEXTS = (
    "",
    "a",
    "F1",
    "M1",
    "T1",
    "B2-0",
    "$seen",
    "x" * 300,
    "\0",
    "é",
    "../..",
    "1AAAA",
    "INBOX",
)


def altered(rng: random.Random, message: Message) -> None:
    """Changes one field somewhere in a message, to something that its type allows."""
    if not message.DESCRIPTOR.fields:
        return
    field = rng.choice(message.DESCRIPTOR.fields)
    assert isinstance(field, FieldDescriptor)
    if rng.randrange(6) == 0:
        message.ClearField(field.name)
        return
    value: Any = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        value.update({rng.choice(_TEXTS): rng.choice(_TEXTS)})
    elif kind is not None:
        if field.is_repeated:
            value.extend(list(value)[: rng.randrange(3)] or [value.add()])
            value = rng.choice(list(value))
        value.SetInParent()
        altered(rng, value)
    elif field.is_repeated:
        for _ in range(1 << rng.randrange(5)):
            _set(value.append, _scalar(rng, field))
    else:
        _set(lambda one: setattr(message, field.name, one), _scalar(rng, field))


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    return rng.choice(_NUMBERS)


def _set(put: Callable[[Any], None], value: Any) -> None:
    with suppress(ValueError, TypeError, OverflowError):  # out of the range of its type
        put(value)


def run_messages(
    what: str, seeds: Sequence[Message], feed: Callable[[Any], object], *, share: int = 1
) -> int:
    """As run(), with messages that are changed field by field, so that all of them can be read.

    share: for what costs more: one in so many of the inputs that are asked for.
    """
    rng = random.Random(f"{what}:{seed()}")
    wanted = inputs() // share
    for count in range(wanted):
        chosen = rng.choice(seeds)
        message = type(chosen)()
        message.CopyFrom(chosen)
        for _ in range(rng.randrange(4)):
            altered(rng, message)
        _feed(what, count, message, feed)
    print(f"{what}: {wanted:,} inputs, seed {seed()}")
    return wanted


def _feed(what: str, count: int, data: Any, feed: Callable[[Any], object]) -> None:
    began_s = time.process_time()
    try:
        feed(data)
    except Exception as error:
        told = f"{what}, seed {seed()}, input {count}: {error!r} for {repr(data)[:2_000]}"
        raise AssertionError(told) from error
    took_s = time.process_time() - began_s
    assert took_s < INPUT_MAX_S, f"{what}, seed {seed()}, input {count}: {took_s:.1f} s"


def run(what: str, seeds: Sequence[bytes], feed: Callable[[bytes], object]) -> int:
    """Feeds every seed and then as many changed ones as are asked for; how many there were.

    Raises AssertionError, with what is needed to see it again, for an input that raises, or takes
    longer than INPUT_MAX_S.
    """
    rng = random.Random(f"{what}:{seed()}")
    count = 0
    for count, data in enumerate(_all(rng, seeds), start=1):
        _feed(what, count, data, feed)
    print(f"{what}: {count:,} inputs, seed {seed()}")
    return count


def _all(rng: random.Random, seeds: Sequence[bytes]) -> Iterator[bytes]:
    yield from seeds
    for _ in range(inputs()):
        yield changed(rng, seeds)


def malformed_mail() -> list[bytes]:
    """The malformed messages of the corpus where it is at hand, and those of the repository."""
    found = [message.raw[:INPUT_MAX_BYTES] for message in Corpus(default_path())]
    named = os.environ.get("MAILRAFT_CORPUS", "")
    beside = Path(named) if named else default_path().parents[2] / "shared" / "corpus"
    manifest = beside / "MANIFEST.tsv"
    if not manifest.is_file():
        return found
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        malformed = {row["id"] for row in rows if "malformed" in row["flags"].split(",")}
    found += [
        message.raw[:INPUT_MAX_BYTES]
        for message in Corpus(beside)
        if Path(message.name).stem in malformed
    ]
    return found
