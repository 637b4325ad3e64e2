"""Uploads of one account, as mail_model.py has them: until a message refers to what they became."""

from __future__ import annotations

from dataclasses import dataclass, field

import mailbox_driver as d

WINDOW_MS = d.DAY_MS
PART_MIN_BYTES = 64 * 1024

Call = d.BeginUpload | d.UploadPart | d.DropUpload | d.Upload


class RefusedError(Exception):
    """The reason is the first argument."""


@dataclass
class Upload:
    raw: bytes
    expires_ms: int
    received: int = 0

    def is_complete(self) -> bool:
        return self.received == len(self.raw)

    def add(self, data: bytes) -> None:
        left = len(self.raw) - self.received
        if len(data) > left or len(data) < min(left, PART_MIN_BYTES):
            raise RefusedError("BAD_FIELD")
        self.received += len(data)


@dataclass
class Uploads:
    by_request: dict[bytes, Upload] = field(default_factory=dict)
    by_blob: dict[str, bytes] = field(default_factory=dict)  # of what is complete: its request

    def run(self, call: Call, free_bytes: int, now_ms: int) -> dict[str, object]:
        """What a call answers. free_bytes: what the quota leaves."""
        upload = self.by_request.get(call.request)
        match call:
            case d.DropUpload():
                if upload is not None and not upload.is_complete():
                    del self.by_request[call.request]
                return {}
            case d.UploadPart():
                if upload is None or call.offset != upload.received:
                    raise RefusedError("UPLOAD_OFFSET_MISMATCH")
                upload.add(call.data)
                upload.expires_ms = (
                    now_ms + WINDOW_MS if upload.is_complete() else upload.expires_ms
                )
            case d.BeginUpload() | d.Upload():
                if upload is None:
                    if len(call.raw) > free_bytes:
                        raise RefusedError("OVER_QUOTA")
                    upload = self.by_request[call.request] = Upload(call.raw, now_ms + WINDOW_MS)
                if upload.raw != call.raw:
                    raise RefusedError("REQUEST_ID_REUSED")
                if isinstance(call, d.Upload):
                    upload.received = len(call.raw)
        return {"offset": upload.received}

    def composed(self, request: bytes, blob: str) -> None:
        """The store named a blob: of what is complete, and each time the same."""
        assert self.by_request[request].is_complete()
        assert self.by_blob.setdefault(blob, request) == request

    def raw_of(self, blob: str) -> bytes | None:
        """None unless it waits for a message."""
        request = self.by_blob.get(blob)
        return None if request is None else self.by_request[request].raw

    def taken(self, blob: str) -> None:
        """A message refers to it: what it was kept for has come."""
        request = self.by_blob.pop(blob, None)
        if request is not None:
            del self.by_request[request]

    def expire(self, now_ms: int) -> None:
        for request, upload in list(self.by_request.items()):  # tidy: a plain dict
            if upload.expires_ms <= now_ms:
                del self.by_request[request]
        for blob, request in list(self.by_blob.items()):  # tidy: a plain dict
            if request not in self.by_request:
                del self.by_blob[blob]
