"""TLS, on by default and built here only; and the options of every channel and server.

    CERTS/ca.pem              signs all of them
    CERTS/<name>.pem, .key    node-1, node-2, ..., router, client, admin

Certificates name "mailraft", localhost and 127.0.0.1, so that a node can move to another address:
who is trusted is decided by the authority that signed, not by host names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from mailraft.wire import limits

TARGET_NAME = "mailraft"
# Around the largest message: framing, and the trailers of an error.
MESSAGE_ROOM_BYTES = 64 * 1024

# A host that vanished without a word is noticed after KEEPALIVE_MS + KEEPALIVE_TIMEOUT_MS.
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
# A restarted node is found again within RECONNECT_MAX_MS.
RECONNECT_FIRST_MS = 100
RECONNECT_MAX_MS = 500
CONNECT_MAX_MS = 2_000
# Connections end at times, so that new routers and nodes get their share. Streams have the grace
# to end by themselves; what is left then is resumed by its client.
CONNECTION_AGE_MS = 30 * 60 * 1000
CONNECTION_AGE_GRACE_MS = 10 * 60 * 1000
METADATA_MAX_BYTES = 16 * 1024
# At one port; the next is closed. Those count too that have not shown a certificate yet, for as
# long as they may take for that.
CONNECTIONS_MAX = 4_096
HANDSHAKE_MAX_MS = 10_000
# Of one connection; a client of ours waits with the next until one has ended.
CONCURRENT_STREAMS_MAX = 1_024
# Who pings more often than allowed is let go after so many.
PING_STRIKES_MAX = 2

Options = Sequence[tuple[str, int | str]]

_MESSAGE_SIZES: Options = (
    ("grpc.max_receive_message_length", limits.RPC_MAX_BYTES + MESSAGE_ROOM_BYTES),
    ("grpc.max_send_message_length", limits.RPC_MAX_BYTES + MESSAGE_ROOM_BYTES),
    ("grpc.max_metadata_size", METADATA_MAX_BYTES),
    # By itself gRPC refuses above the first at random, up to the second.
    ("grpc.absolute_max_metadata_size", METADATA_MAX_BYTES),
)
# What a stream may send ahead of its reader: by itself gRPC lets that grow to megabytes, and ten
# downloads would be held in memory. At 1 ms to and fro it still carries 250 MiB/s.
_WINDOWS: Options = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 * 1024),
)
CHANNEL_OPTIONS: Options = (
    *_MESSAGE_SIZES,
    *_WINDOWS,
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MAX_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    # Nodes are reached directly, whatever http_proxy says.
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS: Options = (
    *_MESSAGE_SIZES,
    *_WINDOWS,
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # Without this a client that pings more often than every five minutes gets GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MAX_MS),
    ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
    ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
    # Two processes on one port would share its calls without a word.
    ("grpc.so_reuseport", 0),
)


class InsecureAddressError(ValueError):
    """Plain text is for the own machine only."""


class CannotListenError(OSError):
    """A server's port is taken, or its address is none of this machine."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The TLS identity `name` in a folder of certificates."""

    folder: Path | str
    name: str

    def channel(self) -> grpc.ChannelCredentials:
        """Trust ca.pem only (it may hold two authorities), and show our certificate."""
        authority, certificate, key = self._read()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def server(self) -> grpc.ServerCredentials:
        """Mutual TLS: without a certificate that ca.pem signed nobody gets in.

        Files that change count from the next connection on; while they cannot be read, or change
        at this moment, those before them do.
        """
        stamp = self.stamp()
        first = self._configuration()

        def newer() -> grpc.ServerCertificateConfiguration | None:  # on a thread of gRPC
            nonlocal stamp
            found = self.stamp()
            if not found or found == stamp:
                return None
            try:
                configuration = self._configuration()
            except OSError:
                return None
            if self.stamp() != found:
                return None
            stamp = found
            return configuration

        return grpc.dynamic_ssl_server_credentials(
            first,
            newer,  # type: ignore[arg-type]  # None is: no other than before
            require_client_authentication=True,
        )

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Differs when the files do; empty while one of them is not there."""
        try:
            found = [path.stat() for path in self.paths()]
        except OSError:
            return ()
        return tuple((each.st_ino, each.st_mtime_ns) for each in found)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        authority, certificate, key = self._read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        authority, certificate, key = self.paths()
        return authority.read_bytes(), certificate.read_bytes(), key.read_bytes()

    def paths(self) -> tuple[Path, Path, Path]:
        """Of the authority, the certificate and its key."""
        folder = Path(self.folder)
        return folder / "ca.pem", folder / f"{self.name}.pem", folder / f"{self.name}.key"


@dataclass(frozen=True, slots=True)
class Insecure:
    """Plain text, as `--insecure` asks: loopback addresses only."""

    def stamp(self) -> tuple[()]:
        """There is nothing that could change."""
        return ()


AnyCredentials = Credentials | Insecure


def open_channel(
    address: str, credentials: AnyCredentials, options: Options = ()
) -> grpc.aio.Channel:
    """A grpc.aio channel; raises InsecureAddressError for plain text to another machine."""
    if isinstance(credentials, Insecure):
        _check_loopback(address)
        return grpc.aio.insecure_channel(address, _merge(CHANNEL_OPTIONS, options))
    merged = _merge(_SECURE_CHANNEL_OPTIONS, options)
    return grpc.aio.secure_channel(address, credentials.channel(), merged)


def open_sync_channel(
    address: str, credentials: AnyCredentials, options: Options = ()
) -> grpc.Channel:
    """As open_channel, for threads and gevent."""
    if isinstance(credentials, Insecure):
        _check_loopback(address)
        return grpc.insecure_channel(address, _merge(CHANNEL_OPTIONS, options))
    merged = _merge(_SECURE_CHANNEL_OPTIONS, options)
    return grpc.secure_channel(address, credentials.channel(), merged)


def server_options(connections_max: int, more: Options = ()) -> list[tuple[str, int | str]]:
    """SERVER_OPTIONS, and others over them."""
    accepted = ("grpc.max_allowed_incoming_connections", connections_max)
    return _merge(SERVER_OPTIONS, [accepted, *more])


def add_port(
    server: grpc.aio.Server | grpc.Server, address: str, credentials: AnyCredentials
) -> int:
    """Listen at host:port (port 0: any) and tell the port. Make servers with SERVER_OPTIONS.

    Raises InsecureAddressError for plain text that others could reach, and CannotListenError.
    """
    shown = None
    if isinstance(credentials, Insecure):
        _check_loopback(address)
    else:
        shown = credentials.server()
    try:
        port = (
            server.add_secure_port(address, shown) if shown else server.add_insecure_port(address)
        )
    except RuntimeError as error:  # which is how grpc tells it
        raise CannotListenError(f"cannot listen at {address}") from error
    if not port:
        raise CannotListenError(f"cannot listen at {address}")
    return port


_SECURE_CHANNEL_OPTIONS: Options = (
    *CHANNEL_OPTIONS,
    ("grpc.ssl_target_name_override", TARGET_NAME),
)


def _merge(base: Options, more: Options) -> list[tuple[str, int | str]]:
    """Options by name; the later one counts."""
    return list(dict([*base, *more]).items())


def _check_loopback(address: str) -> None:
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost" or address.startswith("unix:")
    if not loopback:
        raise InsecureAddressError(f"{address} is not a loopback address: use TLS")
