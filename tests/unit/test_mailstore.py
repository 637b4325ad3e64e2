"""node/mailstore below its contract: overlays, formats, and commands that nobody should send."""

import itertools

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from dict_view import DictView
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.interfaces import Delete, DeleteRange, Entry, EntryKind, Proposal, Put
from mailraft.node.mailstore import rules
from mailraft.node.mailstore.errors import UnknownFormatError
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import error_pb2
from mailraft.wire import limits

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
WRITES = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "range", "child", "commit", "drop"]), KEYS, KEYS),
    max_size=30,
)


@given(WRITES)
def test_an_overlay_reads_as_if_it_were_written(steps: list[tuple[str, bytes, bytes]]) -> None:
    """Reads and scans see the writes of the overlay and of its parents; a dropped child leaves
    nothing; the effects make a view equal to what the overlay showed.
    """
    base = DictView({b"a": b"0", b"c": b"0"})
    layers = [(Overlay(base), dict(base.rows))]
    for number, (step, key, other) in enumerate(steps):
        overlay, model = layers[-1]
        match step:
            case "put":
                overlay.put(key, b"%d" % number)
                model[key] = b"%d" % number
            case "delete":
                overlay.delete(key)
                model.pop(key, None)
            case "range":
                overlay.delete_range(key, other)
                for gone in [one for one in model if key <= one < other]:
                    del model[gone]
            case "child":
                layers.append((overlay.child(), dict(model)))
            case "commit" if len(layers) > 1:
                layers.pop()
                overlay.commit()
                layers[-1] = (layers[-1][0], model)
            case "drop" if len(layers) > 1:
                layers.pop()
        overlay, model = layers[-1]
        assert {key: overlay.get(key) for key in (b"a", b"b", b"c", b"d")} == {
            key: model.get(key) for key in (b"a", b"b", b"c", b"d")
        }
        for start, end, reverse in itertools.product([b"", b"b"], [b"c", b"z"], [False, True]):
            assert list(overlay.scan(start, end, reverse=reverse)) == [
                (key, model[key]) for key in sorted(model, reverse=reverse) if start <= key < end
            ]
    while len(layers) > 1:
        overlay, model = layers.pop()
        overlay.commit()
        layers[-1] = (layers[-1][0], model)
    base.apply(layers[0][0].effects())
    assert base.rows == layers[0][1]


def test_a_dropped_child_leaves_records_as_they_were() -> None:
    """A record changed in place by a child is the parent's own again when the child is dropped."""
    stored = record_pb2.BlobAccessRecord(format=1, references=1)
    overlay = Overlay(DictView({b"k": stored.SerializeToString()}))
    child = overlay.child()
    changed = child.edit(b"k", record_pb2.BlobAccessRecord)
    assert changed is not None
    changed.references = 9
    assert child.read(b"k", record_pb2.BlobAccessRecord) == changed
    assert overlay.read(b"k", record_pb2.BlobAccessRecord) == stored
    assert overlay.effects() == ()


def test_effects_come_in_one_order() -> None:
    """Ranges first, then keys by their bytes, whatever order they were written in."""
    overlay = Overlay(DictView())
    overlay.put(b"b", b"1")
    overlay.delete(b"a")
    overlay.delete_range(b"x", b"y")
    assert overlay.effects() == (DeleteRange(b"x", b"y"), Delete(b"a"), Put(b"b", b"1"))


def test_limits_of_the_api_fit_what_apply_accepts() -> None:
    """What the API lets in is what apply takes. A limit of the API may be lowered by an edit; one
    of apply is part of the log's format and may not follow (see rules.py).
    """
    shared = [name for name in vars(rules) if hasattr(limits, name) and name.isupper()]
    assert len(shared) >= 12
    for name in shared:
        assert getattr(limits, name) <= getattr(rules, name), name
    assert limits.MESSAGE_MAX_BYTES <= rules.BODY_MAX_BYTES


def apply(*commands: command_pb2.Command, bodies: tuple[bytes, ...] = ()) -> list[object]:
    """The replies of one entry on an empty shard."""
    machine = MailStateMachine()
    payload, packed = machine.encode([Proposal(command, bodies) for command in commands])
    return list(machine.apply(DictView(), Entry(2, 1, EntryKind.COMMAND, payload, packed)).replies)


@pytest.mark.parametrize("kind", [EntryKind.NOOP, EntryKind.CONFIGURATION])
def test_entries_without_commands_change_nothing(kind: EntryKind) -> None:
    """A leader's first entry and configurations apply to nothing, whatever they hold."""
    applied = MailStateMachine().apply(DictView(), Entry(2, 1, kind, b"\xff"))
    assert (applied.effects, applied.replies) == ((), ())


@pytest.mark.parametrize(
    "batch",
    [
        command_pb2.CommandBatch(format=2),
        command_pb2.CommandBatch(),
        command_pb2.CommandBatch(format=1, commands=[command_pb2.Command(time_ms=1)]),
    ],
    ids=["newer format", "no format", "unknown command"],
)
def test_an_unknown_format_stops_the_replica(batch: command_pb2.CommandBatch) -> None:
    """What this version does not know it does not guess at."""
    entry = Entry(2, 1, EntryKind.COMMAND, batch.SerializeToString())
    with pytest.raises(UnknownFormatError):
        MailStateMachine().apply(DictView(), entry)


def test_a_damaged_entry_stops_the_replica() -> None:
    """Bytes that are no command batch are never taken for an empty one."""
    with pytest.raises(DecodeError):
        MailStateMachine().apply(DictView(), Entry(2, 1, EntryKind.COMMAND, b"\xff\xff"))


def test_bodies_are_numbered_through_the_entry() -> None:
    """Each command is told where its bodies begin among those of the entry."""
    first, second = (
        command_pb2.Command(read_barrier=command_pb2.ReadBarrier(), time_ms=n) for n in (1, 2)
    )
    payload, packed = MailStateMachine().encode(
        [Proposal(first, (b"a", b"b")), Proposal(second, (b"c",))]
    )
    batch = command_pb2.CommandBatch.FromString(payload)
    assert packed == (b"a", b"b", b"c")
    assert [(one.body_base, one.body_count) for one in batch.commands] == [(0, 2), (2, 1)]


@pytest.mark.parametrize(
    "deliver",
    [
        command_pb2.Deliver(),
        command_pb2.Deliver(recipients=[command_pb2.DeliverRecipient(account_id="a")]),
        command_pb2.Deliver(
            body=command_pb2.NewBody(ordinal=1, sha256=bytes(32)),
            recipients=[command_pb2.DeliverRecipient(account_id="a")],
        ),
        command_pb2.Deliver(
            body=command_pb2.NewBody(sha256=b"short"),
            recipients=[command_pb2.DeliverRecipient(account_id="a")],
        ),
    ],
    ids=["no recipients", "no body", "another's body", "short hash"],
)
def test_malformed_deliveries_are_refused(deliver: command_pb2.Deliver) -> None:
    """A command that makes no sense is answered, since an exception would stop every replica."""
    (reply,) = apply(command_pb2.Command(deliver=deliver, time_ms=1), bodies=(b"body",))
    assert isinstance(reply, command_pb2.Reply)
    assert reply.refusal.reason == error_pb2.ERROR_REASON_BAD_FIELD


NUMBERS = st.sampled_from([0, 1, 2**31, 2**32 - 1])
LONGS = st.sampled_from([0, 1, 2**40, 2**63, 2**64 - 1])
TIMES = st.sampled_from([-(2**63), -1, 0, 1, 2**48, 2**63 - 1])
BODY = st.builds(
    command_pb2.NewBody,
    ordinal=NUMBERS,
    size_bytes=LONGS,
    stored_bytes=LONGS,
    sha256=st.sampled_from([b"", bytes(32)]),
)
TARGETS = st.lists(
    st.one_of(
        st.builds(command_pb2.Target),
        st.builds(command_pb2.Target, mailbox=NUMBERS),
        st.builds(command_pb2.Target, role=NUMBERS),
    ),
    max_size=2,
)
NAME = st.sampled_from(["a", "", "x" * 300, "é"])
ITEM = st.one_of(
    st.builds(command_pb2.AppendItem, body=BODY, targets=TARGETS, internal_time_ms=TIMES),
    st.builds(
        command_pb2.AppendItem,
        blob=st.builds(record_pb2.BodyPosition, index=LONGS, ordinal=NUMBERS),
        thread_keys=st.lists(LONGS, max_size=2),
    ),
    st.builds(command_pb2.AppendItem),
)
COMMAND = st.one_of(
    st.builds(
        command_pb2.Command,
        time_ms=TIMES,
        create_account=st.builds(
            command_pb2.CreateAccount, account_id=NAME, quota_bytes=LONGS, quota_messages=LONGS
        ),
    ),
    st.builds(
        command_pb2.Command,
        time_ms=TIMES,
        request_id=st.sampled_from([b"", b"x", bytes(6) + b"\x70\0\x80" + bytes(7)]),
        create_mailbox=st.builds(
            command_pb2.CreateMailbox, account_id=NAME, name=NAME, parent=NUMBERS, role=NUMBERS
        ),
    ),
    st.builds(
        command_pb2.Command,
        time_ms=TIMES,
        append=st.builds(command_pb2.Append, account_id=NAME, items=st.lists(ITEM, max_size=3)),
    ),
)
SELECTION = st.one_of(
    st.builds(command_pb2.Selection, messages=st.lists(st.one_of(LONGS, st.just(2)), max_size=3)),
    st.builds(
        command_pb2.Selection,
        uids=st.builds(
            command_pb2.UidSelection,
            mailbox=NUMBERS,
            uid_validity=st.sampled_from([0, 1, 2**32 - 1]),
            ranges=st.lists(NUMBERS, max_size=5),
        ),
    ),
    st.builds(command_pb2.Selection),
)
TARGET = st.builds(command_pb2.Target, mailbox=NUMBERS) | st.builds(command_pb2.Target)
STATE = st.none() | st.builds(
    command_pb2.AccountState, restore_epoch=NUMBERS, creation_index=LONGS, modseq=LONGS
)
WORDS = st.lists(st.sampled_from(["a", "A", "", "b c", "é", "x" * 256]), max_size=2)
RULE = st.none() | st.builds(
    record_pb2.RetentionRule,
    expunge_after_ms=LONGS,
    messages_max=LONGS,
    undelete_window_ms=st.none() | LONGS,
)
CHANGES = st.one_of(
    st.builds(
        command_pb2.ModifyKeywords,
        account_id=NAME,
        messages=SELECTION,
        add=WORDS,
        remove=WORDS,
        replace=st.booleans(),
        keywords=WORDS,
        unchanged_since=st.none() | LONGS,
        deleted=st.none() | st.booleans(),
    ),
    st.builds(
        command_pb2.UpdateMemberships,
        account_id=NAME,
        messages=SELECTION,
        add=st.lists(TARGET, max_size=2),
        remove=st.lists(NUMBERS, max_size=2),
        deleted=st.lists(
            st.builds(command_pb2.DeletedMark, mailbox=NUMBERS, deleted=st.booleans()), max_size=2
        ),
    ),
    st.builds(
        command_pb2.MoveMessages, account_id=NAME, messages=SELECTION, source=NUMBERS, target=TARGET
    ),
    st.builds(
        command_pb2.CopyMessages,
        account_id=NAME,
        messages=SELECTION,
        target=TARGET,
        duplicate=st.booleans(),
    ),
    st.builds(
        command_pb2.ExpungeMessages,
        account_id=NAME,
        messages=SELECTION,
        only_deleted=st.booleans(),
        if_in_state=STATE,
    ),
    st.builds(
        command_pb2.UndeleteMessages,
        account_id=NAME,
        messages=st.lists(LONGS, max_size=2),
        since=st.none() | st.builds(command_pb2.ExpungedSince, mailbox=NUMBERS, from_ms=TIMES),
        target=st.none() | TARGET,
    ),
    st.builds(
        command_pb2.UpdateMailbox,
        account_id=NAME,
        mailbox=NUMBERS,
        parent=st.none() | NUMBERS,
        name=st.none() | NAME,
        role=st.none() | NUMBERS,
        set_retention=st.booleans(),
        retention=RULE,
        if_object=STATE,
    ),
    st.builds(command_pb2.DeleteMailbox, account_id=NAME, mailbox=NUMBERS, force=st.booleans()),
    st.builds(command_pb2.DeleteAccount, account_id=NAME, force=st.booleans(), if_object=STATE),
    st.builds(
        command_pb2.UpdateAccount, account_id=NAME, undelete_window_ms=LONGS, quota_bytes=LONGS
    ),
    st.builds(
        command_pb2.DoChore,
        account_id=NAME,
        kind=st.sampled_from(command_pb2.ChoreKind.values()),
        due_ms=TIMES,
        number=NUMBERS,
    ),
    st.builds(command_pb2.CollectBodies),
)


def change(action: Message) -> command_pb2.Command:
    """A command that does this."""
    command = command_pb2.Command(time_ms=1 << 41)
    fields = command_pb2.Command.DESCRIPTOR.oneofs_by_name["action"].fields
    (name,) = (each.name for each in fields if each.message_type == action.DESCRIPTOR)
    getattr(command, name).CopyFrom(action)
    getattr(command, name).SetInParent()
    return command


@given(st.lists(st.one_of(COMMAND, CHANGES.map(change)), max_size=12))
def test_no_command_that_decodes_raises(commands: list[command_pb2.Command]) -> None:
    """Extreme numbers and names get an answer each; none stops the replica."""
    creation = command_pb2.Command(create_account=command_pb2.CreateAccount(account_id="a"))
    item = command_pb2.AppendItem(body=command_pb2.NewBody(sha256=bytes(32)))
    mail = command_pb2.Command(append=command_pb2.Append(account_id="a", items=[item, item]))
    assert len(apply(creation, mail, *commands, bodies=(b"body",))) == len(commands) + 2
