"""Names of the metadata keys, and what their values look like (common.proto, Metadata)."""

from __future__ import annotations

import string
from urllib.parse import quote, unquote_to_bytes

ACCOUNT_KEY = "x-mailraft-account"
EPOCH_KEY = "x-mailraft-epoch"

# Printable ASCII stays, but % starts an escape and gRPC strips spaces at the ends.
_PLAIN = "".join(sorted(set(string.punctuation) - {"%"}))


def encode_account(account_id: str) -> str:
    """The value of x-mailraft-account."""
    return quote(account_id, safe=_PLAIN)


def decode_account(value: str) -> str:
    """The account_id in x-mailraft-account; raises ValueError when it is not UTF-8."""
    return unquote_to_bytes(value).decode()
