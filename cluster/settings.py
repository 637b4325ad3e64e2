"""Settings of a node and of a router: one TOML file, and over it the environment (MAILRAFT_*).

A bad setting ends the process before it has touched anything, with one line that names it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mailraft.cluster.addresses import is_loopback, split_address
from mailraft.cluster.errors import SettingsError
from mailraft.cluster.levels import LogLevel

ENV_PREFIX = "MAILRAFT_"
MIB = 1024 * 1024


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_checked_address)]
LogFormat = Literal["auto", "json", "console"]
Room = Literal["node", "router", "client", "cluster", "wire"]


class ProcessSettings(BaseSettings):
    """What every long-running process needs."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        # What is below a field becomes its line in docs/configuration.md.
        use_attribute_docstrings=True,
    )

    listen_address: Address
    """HOST:PORT of the one gRPC port."""
    map_file: Path
    """What the cluster began with, from `mailraft config map`; the same file for every process."""
    certs_folder: Path | None = None
    """ca.pem and this process' certificate and key. Needed unless `insecure`."""
    certificate: str = Field(default="", pattern=r"^[a-z0-9-]{0,63}$")
    """The certificate's name in `certs_folder`; empty: node-NUMBER, or router."""
    insecure: bool = False
    """Plain text, without any proof of who calls. Only on loopback."""
    metrics_address: Address | None = None
    """HOST:PORT of /metrics, /livez and /readyz; none: not served. Plain HTTP on loopback, HTTPS
    elsewhere, with this process' certificate, to whoever shows one of the same authority."""
    log_level: LogLevel = LogLevel.INFO
    """The least that is logged, to standard error."""
    log_levels: dict[Room, LogLevel] = Field(default_factory=dict)
    """The least that is logged by a room (node, router, client, cluster, wire), where it is not
    `log_level`."""
    log_format: LogFormat = "auto"
    """auto: readable lines on a terminal, JSON elsewhere."""
    log_key_file: Path | None = None
    """Keys the hash that stands for an account in log lines (`mailraft account log-name`): any 16
    bytes or more, the same for all processes; none: a new key at each start."""
    slow_call_ms: int = Field(default=1_000, ge=0)
    """Calls that take longer are logged with the reason (`mailraft slow-log`), in ms; 0: none."""
    trace_address: Address | None = None
    """HOST:PORT, on loopback, of a collector that takes OpenTelemetry's OTLP over gRPC in plain
    text; none: nothing is traced. Needs the extra mailraft[tracing]."""
    trace_share: float = Field(default=0.01, ge=0, le=1)
    """The share of calls that begin a trace here. A call that brings its own is not asked again."""
    audit_file: Path | None = None
    """Every refusal and every action of an operator is appended here (`mailraft audit tail`); none:
    a node takes audit.jsonl in its `data_dir`, a router its log."""
    connections_max: int = Field(default=4_096, ge=16)
    """Connections to `listen_address`; the next is closed. Stay below the limit of open files."""
    caller_calls_per_s: int = Field(default=20_000, ge=1)
    """Calls, and items of batches, that one certificate may make of this process in a second; those
    beyond are told when to come back (RATE_LIMITED). Twice as many pass at once. Nodes and routers
    have no limits: what they carry was counted where it came in."""
    caller_recipients_per_s: int = Field(default=100_000, ge=1)
    """Recipients of deliveries, in the same way."""
    caller_bytes_per_s: int = Field(default=256 * MIB, ge=64 * 1024)
    """Bytes of requests, in the same way; uploads wait instead."""
    caller_calls_max: int = Field(default=3_072, ge=1)
    """Calls that one certificate may have open at once; the next is OVERLOADED, with a delay."""
    caller_streams_max: int = Field(default=3_072, ge=1)
    """The same of streams."""
    stop_grace_s: float = Field(default=5.0, ge=0, le=300)
    """How long calls that run may go on once the process is told to stop, in seconds."""

    @model_validator(mode="after")
    def _tls_unless_insecure(self) -> Self:
        if self.insecure and not is_loopback(self.listen_address):
            raise ValueError("insecure: only allowed while listen_address is on loopback")
        if self.insecure and self.metrics_address and not is_loopback(self.metrics_address):
            raise ValueError("metrics_address: must be on loopback while insecure")
        if not self.insecure and self.certs_folder is None:
            raise ValueError("certs_folder: needed unless insecure (make one: mailraft certs init)")
        return self

    @model_validator(mode="after")
    def _traces_stay_on_this_host(self) -> Self:
        if self.trace_address is not None and not is_loopback(self.trace_address):
            raise ValueError("trace_address: must be on loopback (run a collector on this host)")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # pydantic-settings passes all by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's content is passed to the constructor, and the environment overrides it.
        return (env_settings, init_settings)


class NodeSettings(ProcessSettings):
    """One storage node."""

    node: int = Field(ge=1, lt=2**32)
    """This node's number in the cluster map."""
    data_dir: Path
    """Everything that this node stores."""
    reach: dict[int, Address] = Field(default_factory=dict)
    """HOST:PORT by node number, of nodes that this one gets to by another address than callers."""
    block_cache_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Memory for what was read from disk lately."""
    memtable_bytes: int = Field(default=64 * MIB, ge=4 * MIB)
    """Memory for what was written lately, of all shards together; then it is flushed to tables."""
    disk_reserve_bytes: int = Field(default=2 * 1024 * MIB, ge=0)
    """With less free on the disk of `data_dir` this node takes no new mail as a leader, hands
    leadership over, and still takes deletes; of a small disk `disk_reserve_ratio` is less. 0: no
    reserve."""
    disk_reserve_ratio: float = Field(default=0.1, ge=0, le=0.5)
    """The same as a share of the disk: the smaller of both counts."""
    scrub_bytes_per_s: int = Field(default=8 * MIB, ge=0)
    """How fast this node reads all that it stores once a day, looking for damage. 0: only when told
    to (`mailraft check repair`)."""


class RouterSettings(ProcessSettings):
    """One router."""

    drain_s: float = Field(default=1.0, ge=0, le=60)
    """How long new calls are still taken once health watchers are told of the stop, in seconds."""
    zone: str = ""
    """Where it runs, by the nodes' names of zones: reads that any replica may serve go to one in
    this zone, unless it is busy. Empty: wherever they are served soonest."""
    calls_max: int = Field(default=4_096, ge=1)
    """Calls that are open at once, streams apart; the next is OVERLOADED, with a delay."""


S = TypeVar("S", bound=ProcessSettings)
Origin = Literal["default", "file", "environment"]


@dataclass(frozen=True, slots=True)
class Effective:
    """A setting as a process has it. No setting holds a secret: keys and certificates are files."""

    name: str
    value: str | int | float | bool | None
    origin: Origin


def load(kind: type[S], path: Path | None) -> S:
    """Settings from a TOML file (None: from the environment alone).

    Relative paths in the file are relative to it. Raises SettingsError.
    """
    try:
        return kind(**_read(path))  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise SettingsError(_one_line(error, path)) from None


def kind_of(path: Path | None) -> type[NodeSettings | RouterSettings]:
    """Whose settings these are: a node's have a number or a folder. Raises SettingsError."""
    told = _read(path).keys() | environment()
    return NodeSettings if {"node", "data_dir"} & told else RouterSettings


def effective(loaded: ProcessSettings, path: Path | None) -> list[Effective]:
    """Every setting that `load` made of the same file, and where it came from."""
    values = loaded.model_dump(mode="json")
    in_file, in_environment = _read(path).keys(), environment()
    origins: dict[str, Origin] = {
        **dict.fromkeys(values, "default"),
        **dict.fromkeys(in_file, "file"),
        **dict.fromkeys(in_environment, "environment"),
    }
    return [Effective(name, value, origins[name]) for name, value in values.items()]


def environment() -> set[str]:
    """Names of settings that the environment may override, as pydantic-settings finds them."""
    names = {name.lower() for name in os.environ}
    prefix = ENV_PREFIX.lower()
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _read(path: Path | None) -> Mapping[str, object]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    for name in ("map_file", "certs_folder", "data_dir", "audit_file", "log_key_file"):
        if isinstance(value := values.get(name), str):
            values[name] = path.absolute().parent / value
    return values


def dump(path: Path, values: dict[str, str | int | float | bool | Path]) -> None:
    """Write a flat TOML file that `load` reads."""
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    path.write_text("\n".join([*lines, ""]), "utf-8")


def _toml(value: str | int | float | bool | Path) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F or c in '"\\' else c for c in text
    )
    return f'"{escaped}"'


def _one_line(error: ValidationError, path: Path | None) -> str:
    first, *others = error.errors(include_url=False)
    name = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    if not name:  # a rule over several fields names its field by itself
        name, _, text = text.partition(": ")
    match first["type"]:
        case "missing":
            text = f"is not set (in the file, or as {ENV_PREFIX}{name.upper()})"
        case "extra_forbidden":
            text = "there is no such setting"
        case "value_error":
            pass
        case _:
            text = f"{text[0].lower()}{text[1:]}"
    given = "" if first["type"] in ("missing", "extra_forbidden") else _given(first["input"])
    where = f" in {path}" if path is not None else ""
    more = f" ({len(others)} more)" if others else ""
    return f"bad setting {name}{where}: {text}{given}{more}"


def _given(value: object) -> str:
    return f", not {value!r}" if isinstance(value, str | int | float | bool) else ""
