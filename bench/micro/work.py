"""What the layers work on: mails that are made up, and calls with them. Always the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

from mailraft.client.content import Packing, encode
from mailraft.client.ids import request_ids
from mailraft.v1 import delivery_pb2
from mailraft.wire import bodies

BATCH = 64  # deliveries a call and an entry
ACCOUNTS = 64
_PACKING = Packing(compress=True, dictionary=bodies.MAIL_DICTIONARY)


def mails() -> Iterator[bytes]:
    """Made up, always the same: 40 of 1 to 7 KiB, with the header fields that most mail has."""
    chance = Random(8)
    words = [f"{chance.choice(_SYLLABLES)}{chance.choice(_SYLLABLES)}" for _ in range(2_000)]
    made = []
    for number in range(40):
        lines = _HEADER.format(number=number, parent=number // 3).splitlines()
        while sum(map(len, lines)) < 1_024 + number * 160:
            lines.append(" ".join(chance.choices(words, k=11)))
        made.append("\r\n".join(lines).encode())
    return itertools.cycle(made)


_SYLLABLES = [
    "ba",
    "de",
    "ful",
    "go",
    "hi",
    "jam",
    "ko",
    "lun",
    "me",
    "nor",
    "pi",
    "qua",
    "ri",
    "sta",
    "tu",
    "ver",
    "wo",
    "xen",
    "yl",
    "zu",
]
_HEADER = """Return-Path: <sender{number}@example.org>
Received: from mail.example.org (mail.example.org [192.0.2.7])
\tby mx.example.com with ESMTPS id {number}; Tue, 24 Nov 2026 15:00:00 +0000
Date: Tue, 24 Nov 2026 15:00:00 +0000
From: =?utf-8?q?Andr=C3=A9_Sender?= <sender{number}@example.org>
To: "A. Reader" <reader@example.com>, list@example.com
Cc: third@example.net
Subject: Re: What is said under number {number}
Message-ID: <{number}.1@example.org>
In-Reply-To: <{parent}.1@example.org>
References: <0.1@example.org> <{parent}.1@example.org>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

"""


def account(number: int) -> str:
    return f"user{number % ACCOUNTS}"


def requests(size: int = BATCH) -> Iterator[bytes]:
    """DeliverMessages calls as they lie on the wire; made before, used again and again."""
    raws = mails()
    made = []
    for _ in range(8):
        request = delivery_pb2.DeliverMessagesRequest()
        for number in range(size):
            one = request.deliveries.add(request_id=request_ids.next())
            one.content.CopyFrom(encode(next(raws), _PACKING))
            one.recipients.add(account_id=account(number))
        made.append(request.SerializeToString())
    return itertools.cycle(made)
