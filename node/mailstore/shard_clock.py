"""The shard's clock, and its memory of what each request_id answered.

The clock is the highest time of any command applied: it never falls, and it is the only time the
state machine knows. A request_id carries its own time (UUIDv7, RFC 9562 section 5.7), so that it
can be told from the id alone whether the memory still covers it.
"""

from __future__ import annotations

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.v1 import error_pb2

from . import rules
from .errors import Refused, bad_field
from .overlay import Overlay


def advance(overlay: Overlay, time_ms: int) -> int:
    """Moves the clock to time_ms, unless it is there already; returns the time in force.

    When that enters a new bucket, what fell out of the window is forgotten: one range delete.
    """
    clock = overlay.read(keys.SHARD_CLOCK, record_pb2.ClockRecord)
    time_ms = min(time_ms, rules.TIME_MAX_MS)
    if clock is not None and time_ms <= clock.clock_ms:
        return clock.clock_ms
    clock = overlay.edit_or_new(keys.SHARD_CLOCK, record_pb2.ClockRecord)
    clock.clock_ms = max(time_ms, 0)
    oldest = max(0, clock.clock_ms - rules.REQUEST_ID_WINDOW_MS) // rules.REQUEST_BUCKET_MS
    if oldest > clock.oldest_bucket:
        _forget(overlay, clock, oldest)
    return clock.clock_ms


def check_request_id(request_id: bytes, now_ms: int) -> None:
    """Refuses what is no UUIDv7, and what the memory does not cover. Empty is allowed."""
    if not request_id:
        return
    if len(request_id) != 16 or request_id[6] >> 4 != 7 or request_id[8] >> 6 != 2:
        raise bad_field("request_id: not a UUIDv7 of 16 bytes")
    time_ms = _time_of(request_id)
    if time_ms < now_ms - rules.REQUEST_ID_WINDOW_MS:
        raise Refused(
            error_pb2.ERROR_REASON_REQUEST_ID_TOO_OLD,
            "request_id is older than replies are remembered; nothing was done now",
            {"window_ms": rules.REQUEST_ID_WINDOW_MS},
        )
    if time_ms > now_ms + rules.REQUEST_ID_FUTURE_MS:
        raise bad_field("request_id: its time lies in the future")


def recall(
    overlay: Overlay, request_id: bytes, account: bytes, fingerprint: bytes
) -> record_pb2.RequestRecord | None:
    """What this request answered before; None when it is new and there is room to remember it.

    Raises REQUEST_ID_REUSED for other content, OVERLOADED when the memory is full: nothing is
    ever forgotten before its time to make room.
    """
    if not request_id:
        return None
    stored = overlay.get(keys.request(_bucket_of(request_id), request_id, account))
    if stored is not None:
        record = record_pb2.RequestRecord.FromString(stored)
        if record.fingerprint != fingerprint:
            raise request_id_reused()
        return record
    clock = overlay.read(keys.SHARD_CLOCK, record_pb2.ClockRecord)
    if clock is not None and clock.request_count >= rules.REQUESTS_PER_SHARD_MAX:
        raise Refused(
            error_pb2.ERROR_REASON_OVERLOADED, "the shard remembers as many requests as it may"
        )
    return None


def remembers(view: View, request_id: bytes, account: bytes) -> bool:
    """Whether this request was done. Raises REQUEST_ID_TOO_OLD where nobody knows any more."""
    stored = view.get(keys.SHARD_CLOCK)
    clock = record_pb2.ClockRecord.FromString(stored or b"")
    check_request_id(request_id, clock.clock_ms)
    return view.get(keys.request(_bucket_of(request_id), request_id, account)) is not None


def remember(
    overlay: Overlay, request_id: bytes, account: bytes, record: record_pb2.RequestRecord
) -> None:
    """Keeps an answer until the id's bucket has left the window.

    Refusals are not kept: they changed nothing, and a retry may find the cause removed.
    """
    bucket = _bucket_of(request_id)
    overlay.put(keys.request(bucket, request_id, account), record.SerializeToString())
    overlay.edit_or_new(keys.SHARD_CLOCK, record_pb2.ClockRecord).request_count += 1
    count = overlay.edit_or_new(keys.request_count(bucket), record_pb2.RequestBucketRecord)
    count.request_count += 1


def request_id_reused() -> Refused:
    return Refused(
        error_pb2.ERROR_REASON_REQUEST_ID_REUSED,
        "request_id was used in this account with other content",
    )


def _forget(overlay: Overlay, clock: record_pb2.ClockRecord, oldest: int) -> None:
    first = clock.oldest_bucket
    # No more rows than a window has buckets, however far the clock jumps.
    for key, value in overlay.scan(keys.request_count(first), keys.request_count(oldest)):
        clock.request_count -= record_pb2.RequestBucketRecord.FromString(value).request_count
        overlay.delete(key)
    overlay.delete_range(keys.request_bucket(first), keys.request_bucket(oldest))
    clock.oldest_bucket = oldest


def _time_of(request_id: bytes) -> int:
    return int.from_bytes(request_id[:6])


def _bucket_of(request_id: bytes) -> int:
    return _time_of(request_id) // rules.REQUEST_BUCKET_MS
