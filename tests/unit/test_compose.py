"""What a process says that cannot start: the setting that is to blame, and no other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from mailraft.cluster import compose
from mailraft.cluster.errors import ClusterError, SettingsError
from mailraft.cluster.settings import NodeSettings
from mailraft.wire.credentials import CannotListenError

SETTINGS = cast(
    NodeSettings,
    SimpleNamespace(listen_address="127.0.0.1:7401", metrics_address=None, trace_address=None),
)


class _Refusing:
    def __init__(self, error: Exception) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error = error

    async def start(self) -> str:
        raise self._error


async def _starts(error: Exception) -> None:
    await compose._serve(lambda: cast(compose.Server, _Refusing(error)), SETTINGS)


async def test_a_taken_port_is_the_listen_address_fault() -> None:
    """It is told with the address."""
    with pytest.raises(SettingsError, match=r"listen_address: cannot listen at 127\.0\.0\.1:7401"):
        await _starts(CannotListenError("cannot listen"))


async def test_a_file_that_cannot_be_opened_is_not() -> None:
    """It is told with the file."""
    with pytest.raises(ClusterError, match=r"cannot start: .*audit\.jsonl") as told:
        await _starts(PermissionError(13, "Permission denied", "audit.jsonl"))
    assert "listen_address" not in str(told.value)


async def test_a_bug_keeps_its_traceback() -> None:
    """No line stands for it."""
    with pytest.raises(RuntimeError, match="a bug"):
        await _starts(RuntimeError("a bug"))
