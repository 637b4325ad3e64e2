"""What leaves a site in a debug bundle: log and audit lines without what could name somebody.

Log lines hold no word of mail, and accounts as keyed hashes (mailraft.wire.observed). This goes
further, for eyes outside: addresses of people, machines and networks become stand-ins, the same
within one bundle, and of an exception only where it happened is left.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from mailraft.wire.observed import pseudonym

_MAIL_ADDRESS = re.compile(r"[^\s\"'<>()\[\],;:=/]+@[^\s\"'<>()\[\],;:=/]+")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_IPV6 = re.compile(
    r"\[[0-9a-fA-F]*:[0-9a-fA-F:.]+(?:%\w+)?\]"
    r"|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){3,}[0-9a-fA-F:]*\w"
    r"|(?<![\w:])(?:[0-9a-fA-F]{1,4}:)+:[0-9a-fA-F:]*"
)
# Of a log line; whose values are numbers, names of this code, or keyed hashes.
_WORDS = ("exc_type", "exc_notes", "filename", "lineno", "name", "is_cause", "syntax_error")
# Of an audit line: who called is told by a stand-in.
_CALLERS = ("caller", "peer")
KEY_BYTES = 32


class Redactor:
    """names: what hosts are called in the bundle, by what they are called in logs."""

    def __init__(self, names: dict[str, str], key: bytes = b"") -> None:
        self._names = {host: name for host, name in names.items() if host}
        self._key = key or secrets.token_bytes(KEY_BYTES)

    def text(self, text: str) -> str:
        """The same without addresses."""
        for host in sorted(self._names, key=len, reverse=True):
            text = text.replace(host, self._names[host])
        text = _MAIL_ADDRESS.sub(lambda found: self._stand_in("address", found[0]), text)
        text = _IPV6.sub(lambda found: self._stand_in("ip", found[0]), text)
        return _IPV4.sub(lambda found: self._stand_in("ip", found[0]), text)

    def value(self, value: Any) -> Any:
        """Of a JSON document, whatever it is; exceptions lose their words."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.value(each) for each in value]
            case dict():
                return {
                    name: self._exceptions(each) if name == "exception" else self.value(each)
                    for name, each in value.items()
                }
            case _:
                return value

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Of a log. What is no JSON object, such as a traceback of a crash, is only counted."""
        left_out = 0
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                told = None
            if isinstance(told, dict):
                yield json.dumps(self.value(told), ensure_ascii=False)
            else:
                left_out += bool(line.strip())
        if left_out:
            yield json.dumps({"left_out": left_out, "why": "lines that are no JSON object"})

    def audit(self, lines: Iterable[str]) -> Iterator[str]:
        """Of an audit log: who called is a stand-in too, and why a call was refused is left out."""
        for line in self.lines(lines):
            told = json.loads(line)
            told.pop("reason", None)
            for name in _CALLERS:
                if told.get(name):
                    role, _, rest = str(told[name]).partition("/")
                    told[name] = f"{role}/{self._stand_in('', rest)}" if rest else role
            yield json.dumps(told)

    def _exceptions(self, told: Any) -> Any:
        """Kinds and places, without what they say: that may quote somebody."""
        if isinstance(told, list):
            return [self._exceptions(each) for each in told]
        if not isinstance(told, dict):
            return "left out"
        kept = {name: value for name, value in told.items() if name in _WORDS}
        if "frames" in told:
            kept["frames"] = self._exceptions(told["frames"])
        return kept

    def _stand_in(self, what: str, name: str) -> str:
        return f"{what}-{pseudonym(name, self._key)[:8]}".strip("-")
