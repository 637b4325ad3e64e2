"""Address lists of header fields (RFC 5322 section 3.4). Lenient, bounded, never raises."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .encoded_words import decoded

ADDRESSES_MAX = 100  # of one field, as message.proto promises
FIELD_MAX_CHARS = 16 * 1024  # of one field, looked at
TOKENS_MAX = 2_000  # of one field, read the slow way: about 2 ms
PART_MAX_CHARS = 512  # of a name, a local part, a domain

# What nearly all mail has: name <local@domain>, "name" <local@domain>, local@domain.
# Possessive throughout: a hostile field must not make it look back.
_COMMON = re.compile(
    r'(?:(?:"([^"\\]*+)"\s*+|([^\s"<>,:;()@\\][^"<>,:;()@\\]*+))?'
    r'<([^\s"<>,:;()@\\]++)@([^\s"<>,:;()@\\]++)>'
    r'|([^\s"<>,:;()@\\]++)@([^\s"<>,:;()@\\]++))\s*+(?:,\s*+|$)'
)
# One step of the slow way. Never fails to match.
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*+)"?|([<>,:;@()])|([^\s"<>,:;@()\\]++|\\.?)|\s++', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

Parsed = tuple[str, str, str]  # display name, local part, domain; as message.proto's Address


def parse(text: str) -> tuple[list[Parsed], bool]:
    """The addresses of an unfolded field, and whether some were cut to keep a limit.

    A group begins with ("name of the group" as local part, no domain) and ends with an empty one
    (RFC 9051 section 7.5.2).
    """
    cut = len(text) > FIELD_MAX_CHARS
    text = text[:FIELD_MAX_CHARS].strip()
    found: list[Parsed] = []
    position = 0
    while position < len(text):
        match = _COMMON.match(text, position)
        if match is None:
            slow = _Slow(found)
            slow.run(text[position:])
            return slow.found[:ADDRESSES_MAX], cut or slow.full
        if len(found) == ADDRESSES_MAX:
            return found, True
        quoted, plain, local, domain, bare_local, bare_domain = match.groups()
        name = quoted or (plain or "").rstrip()
        found.append(_address(name, local or bare_local, domain or bare_domain))
        position = match.end()
    return found, cut


def _address(name: str, local: str, domain: str) -> Parsed:
    return (
        decoded(name)[:PART_MAX_CHARS],
        local[:PART_MAX_CHARS],
        domain[:PART_MAX_CHARS],
    )


@dataclass(slots=True)
class _Part:
    """What was read of one address so far."""

    name: list[str]
    comment: list[str]
    route: list[str] | None = None  # within < >

    def empty(self) -> bool:
        return not self.name and not self.comment and self.route is None


class _Slow:
    """Comments, groups, routes, quoted local parts, and what is not an address at all."""

    def __init__(self, found: list[Parsed]) -> None:
        self.found = found
        self.full = False
        self._part = _Part([], [])
        self._in_group = False
        self._depth = 0  # of comments

    def run(self, text: str) -> None:
        for count, match in enumerate(_TOKEN.finditer(text)):
            if len(self.found) >= ADDRESSES_MAX or count >= TOKENS_MAX:
                self.full = True
                break
            quoted, special, atom = match.groups()
            if self._depth:
                self._comment(match[0])
            elif special is not None:
                self._special(special)
            elif quoted is not None:
                self._add(_ESCAPED.sub(r"\1", quoted))
            elif atom is not None:
                self._add(atom)
            elif self._part.route is None and self._part.name:
                self._part.name.append(" ")
        self._end()
        if self._in_group:
            self._push("", "", "")

    def _comment(self, token: str) -> None:
        self._depth += {"(": 1, ")": -1}.get(token, 0)
        if self._depth:
            self._part.comment.append(token)

    def _special(self, token: str) -> None:
        match token:
            case "(":
                self._depth = 1
            case "<":
                self._part.route = []
            case ">" | ")":
                pass
            case "," if self._part.route and self._part.route[0] == "@":
                self._part.route.append(token)  # between the domains of a route
            case ",":
                self._end()
            case ":":
                self._colon()
            case ";":
                self._end()
                if self._in_group:
                    self._push("", "", "")
                self._in_group = False
            case _:
                self._add(token)

    def _colon(self) -> None:
        if self._part.route is not None:
            self._part.route.clear()  # the route before the address (RFC 5322 section 4.4)
        elif not self._in_group:
            self._push("", "".join(self._part.name).strip(), "")
            self._part = _Part([], [])
            self._in_group = True

    def _add(self, token: str) -> None:
        (self._part.name if self._part.route is None else self._part.route).append(token)

    def _end(self) -> None:
        part, self._part = self._part, _Part([], [])
        if part.empty():
            return
        before, comment = "".join(part.name).strip(), "".join(part.comment).strip()
        if part.route is not None:
            name, address = before or comment, "".join(part.route)
        elif "@" in before:
            name, address = comment, "".join(each for each in part.name if each != " ")
        else:
            name, address = before or comment, ""
        local, _, domain = address.rpartition("@")
        self._push(name, local or domain, domain if local else "")

    def _push(self, name: str, local: str, domain: str) -> None:
        self.found.append(_address(name, local, domain))
