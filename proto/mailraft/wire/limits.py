"""Every limit of the API that both ends must know. Units last in names."""

from __future__ import annotations

ACCOUNT_ID_MAX_BYTES = 255
MAILBOX_NAME_MAX_BYTES = 255
MAILBOX_DEPTH_MAX = 16
MAILBOXES_PER_ACCOUNT_MAX = 10_000
KEYWORD_MAX_BYTES = 255
KEYWORDS_PER_MESSAGE_MAX = 128
ATTRIBUTES_MAX = 64
ATTRIBUTE_MAX_BYTES = 1_024

# One message in one call. RFC 5321 has no limit, most receivers refuse above 25-50 MiB.
MESSAGE_MAX_BYTES = 3 * 1024 * 1024
# One message by UploadBlob.
UPLOAD_MAX_BYTES = 50 * 1024 * 1024
# How long an upload stays, unfinished or without a message that refers to it.
UPLOAD_WINDOW_MS = 24 * 3600 * 1000
# What our client uploads instead of sending it in one call.
UPLOAD_ABOVE_BYTES = 1024 * 1024
# One gRPC message either way, with room for framing around one message of MESSAGE_MAX_BYTES.
RPC_MAX_BYTES = 4 * 1024 * 1024
# What a mutation of a batch says whose own answer that leaves no room for.
NO_ROOM = "it is done, but the batch's reply has no room for what it answers: ask again"
DELIVERIES_PER_CALL_MAX = 256
RECIPIENTS_PER_DELIVERY_MAX = 1_000
RECIPIENTS_PER_CALL_MAX = 4_096
TARGETS_PER_MESSAGE_MAX = 64
MESSAGES_PER_COMMAND_MAX = 1_000
BATCH_ITEMS_MAX = 256

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000

CHUNK_BYTES = 256 * 1024

# Mail servers retry for five days; a request_id older than this is refused, never applied.
REQUEST_ID_WINDOW_MS = 7 * 24 * 3600 * 1000
REQUEST_ID_FUTURE_MS = 10 * 60 * 1000
REQUEST_BUCKET_MS = 3600 * 1000
REQUESTS_PER_SHARD_MAX = 50_000_000

DEADLINE_DEFAULT_MS = 10_000
DEADLINE_MAX_MS = 60_000
