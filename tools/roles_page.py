"""docs/roles.md: who may call what, as mailraft.wire.access has it."""

from collections.abc import Iterator
from itertools import groupby

from mailraft.wire.access import TABLE, Role

PAGE = """# Roles

{generated}

What a certificate may call, by the role that is its OU ([security.md](security.md)). A call that
is not here is refused to everybody. Where a router calls for one caller, that caller's role counts.
Nodes serve all services, routers those of `mailraft.v1` and of `grpc`.
"""
HEADERS = ("service", "calls", *Role)


def rows() -> Iterator[tuple[str, ...]]:
    """One for each service and the roles that may call the same of it."""

    def order(path: str) -> tuple[bool, str, list[Role], str]:
        service, _, name = path.partition("/")
        return ".internal." in service, service, sorted(TABLE[f"/{path}"]), name

    paths = sorted((path[1:] for path in TABLE), key=order)
    for (service, roles), group in groupby(
        paths, key=lambda path: (path.partition("/")[0], TABLE[f"/{path}"])
    ):
        names = ", ".join(path.partition("/")[2] for path in group)
        yield f"`{service}`", names, *("yes" if role in roles else "" for role in Role)
