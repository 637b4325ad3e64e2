"""What a client has seen: so that its reads never go back behind its writes or its own reads."""

from __future__ import annotations

import functools
import json
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict

from mailraft.wire import tokens

ACCOUNTS_MAX = 10_000
_VERSION = "1"
_GONE = "gone"  # no state of a server


class Session:
    """The highest state that was written or read, of each of the last `accounts_max` accounts.

    Reads at Consistency.SESSION, the default, show at least that, at whatever replica: read your
    writes, and monotonic reads. An account that is forgotten (the longest unused one beyond the
    bound) has neither promise until its next reply. Hand `token` to another client, in another
    process too, and it goes on where this one is. Usable from several threads.
    """

    def __init__(self, accounts_max: int = ACCOUNTS_MAX) -> None:
        self._accounts_max = accounts_max
        self._lock = threading.Lock()
        self._states: OrderedDict[str, str] = OrderedDict()

    @classmethod
    def from_token(cls, token: str, accounts_max: int = ACCOUNTS_MAX) -> Session:
        """The session that `token` was taken of. Raises ValueError for any other string."""
        try:
            if not token.startswith(_VERSION):
                raise ValueError
            pairs = json.loads(urlsafe_b64decode(token[len(_VERSION) :]))
            seen = [(str(account_id), str(state)) for account_id, state in pairs]
        except (ValueError, TypeError):
            raise ValueError("not the token of a session") from None
        session = cls(accounts_max)
        for account_id, state in seen:
            session.observe(account_id, state)
        return session

    @property
    def token(self) -> str:
        """All that is remembered, as a string of letters, digits, '-', '_' and '='."""
        with self._lock:
            pairs = [pair for pair in self._states.items() if pair[1] != _GONE]
        return _VERSION + urlsafe_b64encode(json.dumps(pairs).encode()).decode()

    def state_of(self, account_id: str) -> str:
        """The state that reads of this account show at least; empty: any."""
        with self._lock:
            state = self._states.get(account_id, "")
            if state:
                self._states.move_to_end(account_id)
            return "" if state == _GONE else state

    def observe(self, account_id: str, state: str) -> None:
        """Remember a state that a reply told, unless a higher one is remembered or it is empty."""
        if not state:
            return
        with self._lock:
            known = self._states.get(account_id)
            if known in {None, _GONE} or _is_above(state, known):
                self._states[account_id] = state
            self._keep(account_id)

    def deleted(self, account_id: str) -> None:
        """Remember that the account is gone: there is no state to wait for, and a replica that is
        behind would still show it.
        """
        with self._lock:
            self._states[account_id] = _GONE
            self._keep(account_id)

    def is_gone(self, account_id: str) -> bool:
        """Whether it was deleted, and nothing was heard of it since."""
        with self._lock:
            return self._states.get(account_id) == _GONE

    def _keep(self, account_id: str) -> None:
        self._states.move_to_end(account_id)
        if len(self._states) > self._accounts_max:
            self._states.popitem(last=False)

    def forget(self, account_id: str) -> None:
        """Promise nothing of this account any more, as a read with StateTooOldError does."""
        with self._lock:
            self._states.pop(account_id, None)


def _is_above(state: str, known: str) -> bool:
    if state == known:
        return False
    try:
        return _decoded(state) > _decoded(known)
    except ValueError:  # of a newer server, whose states only it can compare: the last one counts
        return True


# What is known was new a moment ago.
_decoded = functools.lru_cache(maxsize=1024)(tokens.decode_state)
