"""mailraft settings: those of the whole cluster, kept by the meta group."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.operating import DryRunOption, Session, operating
from mailraft.cluster.errors import SettingsError

if TYPE_CHECKING:
    from mailraft.v1 import admin_pb2

app = typer.Typer(
    help="Settings of the cluster: get, set.", no_args_is_help=True, rich_markup_mode=None
)

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Setting:
    """field: of mailraft.v1.Settings; show, read: its value as a human writes it."""

    field: str
    meaning: str
    show: Callable[[int], str]
    read: Callable[[str], int]

    @property
    def name(self) -> str:
        return self.field.removesuffix("_ms")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a number is needed")
    return int(text)


def _duration(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})(ms|s|m|h|d)|0", text)
    if found is None:
        raise ValueError("a time with its unit is needed (ms, s, m, h, d), for example 10m")
    return int(found[1]) * _UNITS_MS[found[2]] if found[1] else 0


def _shown_duration(value: int) -> str:
    from mailraft.cluster.cli import describe

    return describe.duration(value)


def _level(enum: str, prefix: str) -> tuple[Callable[[int], str], Callable[[str], int]]:
    """How a level of the API is shown and read: by its name there, in lower case."""

    def shown(value: int) -> str:
        from mailraft.v1 import common_pb2

        name: str = getattr(common_pb2, enum).Name(value)
        return name.removeprefix(prefix).lower()

    def read(text: str) -> int:
        from mailraft.v1 import common_pb2

        levels = getattr(common_pb2, enum)
        known = [shown(each) for each in levels.values() if each]
        if text not in known:
            raise ValueError(f"one of {', '.join(known)} is needed")
        value: int = levels.Value(prefix + text.upper())
        return value

    return shown, read


def _shown_flag(value: int) -> str:
    return "yes" if value else "no"


def _flag(text: str) -> int:
    if text not in {"yes", "no"}:
        raise ValueError("yes or no is needed")
    return text == "yes"


# Those that this version heeds; mailraft.v1.Settings has more.
SETTINGS = (
    Setting("replicas_per_shard", "voters a shard: 1, 3, 5 or 7", str, _number),
    Setting("concurrent_moves", "moves of replicas at once, 1 to 64", str, _number),
    Setting(
        "replace_after_ms",
        "silence until a node is replaced; 0: never",
        _shown_duration,
        _duration,
    ),
    Setting(
        "undelete_window_ms",
        "how long expunged mail can be undeleted; 0: 7d",
        _shown_duration,
        _duration,
    ),
    Setting(
        "default_consistency",
        "level of reads that name none",
        *_level("Consistency", "CONSISTENCY_"),
    ),
    Setting("default_ack", "level of writes that name none", *_level("AckLevel", "ACK_LEVEL_")),
    Setting("allow_accepted", "whether writes may ask for accepted", _shown_flag, _flag),
)


@app.command("get")
@operating
async def get(
    it: Session,
    name: Annotated[str, typer.Argument(help="Only this one: its value alone.")] = "",
) -> None:
    """Show the settings of the cluster. JSON has times in milliseconds.

    Example: mailraft settings get
    """
    wanted = _setting(name) if name else None
    told = await it.operator.settings()
    if wanted is not None:
        value = getattr(told, wanted.field)
        it.tell(wanted.show(value), {wanted.field: value})
        return
    it.tell(f"settings etag={told.etag}", _described(told))
    rows: list[tuple[object, ...]] = [
        (each.name, each.show(getattr(told, each.field)), each.meaning) for each in SETTINGS
    ]
    it.table(("SETTING", "VALUE", "MEANING"), rows)


@app.command("set")
@operating
async def set_(
    it: Session,
    changes: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE", help="As settings get shows them.")
    ],
    dry_run: DryRunOption = False,
) -> None:
    """Change settings of the cluster, all that are given at once.

    Example: mailraft settings set replace_after=30m concurrent_moves=4
    """
    from mailraft.v1 import admin_pb2

    wanted = admin_pb2.Settings()
    fields = []
    for change in changes:
        name, _, text = change.partition("=")
        setting = _setting(name)
        try:
            setattr(wanted, setting.field, setting.read(text))
        except ValueError as error:
            raise SettingsError(f"bad value of {name}: {error}, not {text!r}") from None
        fields.append(setting.field)
    before = await it.operator.settings()
    wanted.etag = before.etag  # nobody else's change in between
    after = await it.operator.change_settings(wanted, fields, validate=dry_run)
    told = []
    for each in SETTINGS:
        if each.field in fields:
            was, now = (each.show(getattr(of, each.field)) for of in (before, after))
            told.append(f"{each.name} {was}→{now}")
    it.tell(", ".join(told), _described(after), dry=dry_run)


def _setting(name: str) -> Setting:
    for each in SETTINGS:
        if name == each.name:
            return each
    there = ", ".join(each.name for each in SETTINGS)
    raise SettingsError(f"there is no setting {name!r}", f"there are {there}")


def _described(told: admin_pb2.Settings) -> dict[str, object]:
    """As the fields of the API are named, times in milliseconds."""
    return {each.field: getattr(told, each.field) for each in SETTINGS} | {"etag": told.etag}
