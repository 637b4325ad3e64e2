"""RFC 2047: text of other charsets in header fields. Best effort, bounded, never raises.

Charsets come from a fixed list: a codec is looked up by importing a module of that name, and
Python remembers every name that it did not find.
"""

from __future__ import annotations

import binascii
import re

_WORD = re.compile(r"=\?([!-<>@-~]{1,60})\?([BbQq])\?([^?]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)\s+(?==\?)")

_REMOVED = "\0\r\n"  # an encoded word may hold what a header must not

# What it is called (lower case) -> Python's codec. A superset stands for what senders confuse with
# it, as in the WHATWG encoding standard.
_CODECS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "latin1", "iso8859-1", "windows-1252", "cp1252"), "cp1252"),
    **{f"iso-8859-{n}": f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    **{f"windows-{n}": f"cp{n}" for n in (874, 1250, 1251, 1253, 1254, 1255, 1256, 1257, 1258)},
    "iso-8859-9": "cp1254",
    "iso-8859-11": "cp874",
    "tis-620": "cp874",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "ibm866": "cp866",
    "cp866": "cp866",
    "macintosh": "mac-roman",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "hz-gb-2312": "hz",
    "big5": "big5hkscs",
    "iso-2022-jp": "iso2022_jp_ext",
    "iso-2022-kr": "iso2022_kr",
    "shift_jis": "cp932",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "utf-16": "utf-16",
    "utf-16be": "utf-16-be",
    "utf-16le": "utf-16-le",
}


def codec_of(charset: str) -> str:
    """Python's codec for a charset as mail names it; empty: not known."""
    return _CODECS.get(charset.lower(), "")


def decoded(text: str) -> str:
    """The text with its encoded words decoded. What cannot be decoded stays as it is."""
    if "=?" not in text:
        return text
    if text.find("?=") < text.rfind("=?"):  # else there are no two
        text = _BETWEEN_WORDS.sub(r"\1", text)
    parts: list[str] = []
    end = 0
    pending, codec = b"", ""  # words that touch and agree may share a character between them
    for match in _WORD.finditer(text):
        name = match[1].partition("*")[0].lower()  # RFC 2231 section 5: a language behind *
        found, content = _CODECS.get(name, ""), _bytes_of(match[2], match[3])
        gap = text[end : match.start()]
        if gap or found != codec or content is None:
            parts += (_text_of(pending, codec), gap)
            pending = b""
        end = match.end()
        if content is None or not found:
            parts.append(match[0])
            codec = ""
        else:
            pending, codec = pending + content, found
    parts += (_text_of(pending, codec), text[end:])
    whole = "".join(parts)
    for each in _REMOVED:  # a third of what str.translate takes
        whole = whole.replace(each, "")
    return whole


def _bytes_of(encoding: str, content: str) -> bytes | None:
    if encoding in "Qq":
        return binascii.a2b_qp(content.encode("utf-8"), header=True)
    try:
        return binascii.a2b_base64(content.encode("utf-8") + b"===")
    except binascii.Error:
        return None


def _text_of(content: bytes, codec: str) -> str:
    if not content:
        return ""
    try:
        return content.decode(codec, "replace")
    except (UnicodeError, LookupError):
        return content.decode("ascii", "replace")
