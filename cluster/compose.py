"""The composition root: builds the process that settings describe, and runs it until a signal.

A process stops cleanly (exit 0) on SIGTERM, SIGINT and SIGHUP, within a bounded time.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from mailraft.cluster import certs, logs, mapfile
from mailraft.cluster.errors import ClusterError, ExitCode, SettingsError
from mailraft.cluster.maps import ClusterMaps
from mailraft.cluster.settings import NodeSettings, ProcessSettings, RouterSettings
from mailraft.wire import tracing
from mailraft.wire.callers import CallerLimits
from mailraft.wire.credentials import AnyCredentials, CannotListenError, Credentials, Insecure

if TYPE_CHECKING:
    from mailraft.router.service import RouterServer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Beyond the grace of its calls, for what a process does at its end (the last flush).
STOP_MARGIN_S = 5.0
LOG_KEY_BYTES_MIN, LOG_KEY_BYTES_NEW = 16, 32

log = structlog.get_logger(__name__)


class Server(Protocol):
    """What both kinds of process offer to the composition root."""

    @property
    def failed(self) -> asyncio.Future[None]:
        """Done with the reason when the process cannot go on."""

    def checks(self) -> Mapping[str, str]:
        """While it serves: what must hold so that it can answer, and why it does not; empty: ok."""

    async def start(self) -> str:
        """Serve; returns the address. Raises OSError when the port is taken."""

    async def stop(self, grace_s: float) -> None:
        """End calls within grace_s, then everything else, in order."""


def run_node(settings: NodeSettings) -> int:
    """Run one storage node until it is told to stop; returns the exit status."""
    key = _configure_logs(settings, process="node", node=settings.node)
    from mailraft.node.engine.errors import EngineError
    from mailraft.node.interfaces import LogCorruptError

    refusals = (OSError, EngineError, LogCorruptError)
    return _run(_serve(lambda: _build_node(settings, key), settings, refusals))


def run_router(settings: RouterSettings) -> int:
    """Run one router until it is told to stop; returns the exit status."""
    _configure_logs(settings, process="router")
    return _run(_serve(lambda: _Router(settings), settings))


def _configure_logs(settings: ProcessSettings, **context: str | int) -> bytes:
    """The key of the hash that stands for an account."""
    level, log_format = settings.log_level, settings.log_format
    file = settings.log_key_file
    key = secrets.token_bytes(LOG_KEY_BYTES_NEW) if file is None else log_key(file)
    logs.configure(level, log_format, levels=settings.log_levels, account_key=key, context=context)
    return key


def log_key(path: Path) -> bytes:
    """Of the hash that stands for an account in log lines. Raises SettingsError."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"bad setting log_key_file: {path}: {error.strerror}") from error
    if len(key) < LOG_KEY_BYTES_MIN:
        raise SettingsError(
            f"bad setting log_key_file: {path} has less than {LOG_KEY_BYTES_MIN} bytes"
        )
    return key


def credentials_of(settings: ProcessSettings, default_name: str) -> AnyCredentials:
    """This process' TLS identity. Raises SettingsError or CertificateError."""
    if settings.insecure:
        return Insecure()
    folder, name = settings.certs_folder, settings.certificate or default_name
    assert folder is not None  # the settings are checked
    for file in ("ca.pem", f"{name}.pem", f"{name}.key"):
        if not (folder / file).is_file():
            raise SettingsError(
                f"bad setting certs_folder: {folder / file} is not there",
                f"make it: mailraft certs init --dir {folder}",
            )
    certs.check(folder, name)
    return Credentials(folder, name)


def caller_limits(settings: ProcessSettings) -> CallerLimits:
    """What each caller may take."""
    return CallerLimits(
        calls_per_s=settings.caller_calls_per_s,
        recipients_per_s=settings.caller_recipients_per_s,
        bytes_per_s=settings.caller_bytes_per_s,
        calls_max=settings.caller_calls_max,
        streams_max=settings.caller_streams_max,
    )


def _build_node(settings: NodeSettings, account_key: bytes) -> Server:
    from mailraft.cluster.control.member import Member
    from mailraft.node.disk_space import Reserve
    from mailraft.node.engine.options import StoreOptions
    from mailraft.node.server import NodeOptions

    options = NodeOptions(
        data_dir=settings.data_dir,
        listen_address=settings.listen_address,
        credentials=credentials_of(settings, f"node-{settings.node}"),
        store=StoreOptions(
            block_cache_bytes=settings.block_cache_bytes, memtable_bytes=settings.memtable_bytes
        ),
        reserve=Reserve(settings.disk_reserve_bytes, settings.disk_reserve_ratio),
        slow_call_ms=settings.slow_call_ms,
        account_key=account_key,
        audit_file=settings.audit_file or settings.data_dir / "audit.jsonl",
        scrub_bytes_per_s=settings.scrub_bytes_per_s,
        connections_max=settings.connections_max,
        caller_limits=caller_limits(settings),
    )
    maps = ClusterMaps.open(
        settings.map_file, settings.node, settings.data_dir, reach=settings.reach
    )
    return Member(options, maps)


class _Router:
    """A router as a Server."""

    def __init__(self, settings: RouterSettings) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._map = mapfile.load(settings.map_file)
        self._credentials = credentials_of(settings, "router")
        self._running: RouterServer | None = None

    def checks(self) -> Mapping[str, str]:
        assert self._running is not None
        return self._running.checks()

    async def start(self) -> str:
        from prometheus_client import REGISTRY

        from mailraft.router import service

        address = self._settings.listen_address
        self._running = await service.serve(
            self._map,
            self._credentials,
            address,
            registry=REGISTRY,
            slow_call_ms=self._settings.slow_call_ms,
            zone=self._settings.zone,
            calls_max=self._settings.calls_max,
            audit_file=self._settings.audit_file,
            connections_max=self._settings.connections_max,
            caller_limits=caller_limits(self._settings),
        )
        return f"{address.rpartition(':')[0]}:{self._running.port}"

    async def stop(self, grace_s: float) -> None:
        if self._running is not None:
            await self._running.stop(drain_s=self._settings.drain_s, grace_s=grace_s)


async def _serve(
    build: Callable[[], Server],
    settings: ProcessSettings,
    refusals: tuple[type[Exception], ...] = (OSError,),
) -> int:
    """Run until told. `refusals` of start() are expected: they become a line, not a traceback."""
    server = build()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, told.set)
    serving = False

    def checks() -> Mapping[str, str]:
        return server.checks() if serving else {"serving": "it starts or stops"}

    async with _probes(settings, checks), _traced(settings):
        try:
            address = await server.start()
        except CannotListenError as error:
            raise _cannot_listen("listen_address", settings.listen_address) from error
        except refusals as error:
            raise ClusterError(f"cannot start: {error} ({type(error).__name__})") from error
        serving = True
        log.info("serves", address=address)
        failure = await _told_or_failed(told, server.failed)
        serving = False
        if failure is not None:
            expected = isinstance(failure, ClusterError)
            log.error("failed", exc_info=None if expected else failure, reason=str(failure))
        stopped = await _stop(server, settings)
    if isinstance(failure, ClusterError):
        raise failure
    return ExitCode.OK if stopped and failure is None else ExitCode.FAILED


@asynccontextmanager
async def _traced(settings: ProcessSettings) -> AsyncIterator[None]:
    """Traces go to their collector, if the settings name one."""
    if settings.trace_address is None:
        yield
        return
    try:
        from mailraft.cluster import traces
    except ImportError as error:
        raise SettingsError(
            f"bad setting trace_address: needs mailraft[tracing] ({error})"
        ) from None
    service = f"mailraft-{getattr(settings, 'node', 'router')}"
    provider = traces.provider(settings.trace_address, settings.trace_share, service)
    tracing.enable(provider)
    try:
        yield
    finally:
        tracing.disable()
        await asyncio.to_thread(provider.shutdown)


@asynccontextmanager
async def _probes(
    settings: ProcessSettings, checks: Callable[[], Mapping[str, str]]
) -> AsyncIterator[None]:
    """The second port, if the settings want it."""
    address = settings.metrics_address
    if address is None:
        yield
        return
    from mailraft.cluster.probes import Probes

    default_name = f"node-{settings.node}" if isinstance(settings, NodeSettings) else "router"
    probes = Probes(checks)
    try:
        await probes.start(address, credentials_of(settings, default_name))
    except OSError as error:
        raise _cannot_listen("metrics_address", address, error.strerror) from error
    try:
        yield
    finally:
        await probes.stop()


async def _told_or_failed(
    told: asyncio.Event, failed: asyncio.Future[None]
) -> BaseException | None:
    """Wait for a signal, or for the reason why the process cannot go on."""
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait((waiting, failed), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return failed.exception() if failed.done() and not failed.cancelled() else None


async def _stop(server: Server, settings: ProcessSettings) -> bool:
    log.info("stops")
    try:
        async with asyncio.timeout(settings.stop_grace_s + STOP_MARGIN_S):
            await server.stop(settings.stop_grace_s)
    except TimeoutError:
        log.warning("did not stop in time")
        return False
    log.info("stopped")
    return True


def _cannot_listen(name: str, address: str, why: str | None = None) -> SettingsError:
    return SettingsError(
        f"bad setting {name}: cannot listen at {address}: {why or 'the port is taken'}"
    )


def _run(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
