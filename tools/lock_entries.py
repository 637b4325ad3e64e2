"""Prints entries of requirements.lock, hashes included.

NAME...            those of the named packages: `make venv` installs the build tools before the rest
--extras EXTRA...  all that mailraft with these extras needs: deploy/install.sh installs no more
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
PYPROJECT = ROOT / "pyproject.toml"
# An entry is `name==version`, then its hashes, each line but the last ending in "\".
_ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)==(?:.*\\\n)*.*\n(?P<via>(?:    # .*\n)*)", re.MULTILINE | re.ASCII
)


def entries(lock: str, names: Iterable[str]) -> str:
    """The lines of `lock` that pin `names`; KeyError when one of them is not pinned."""
    found = {
        match["name"].lower(): match[0].removesuffix(match["via"])
        for match in _ENTRY.finditer(lock)
    }
    return "".join(found[name] for name in names)


def needed(lock: str, pyproject: str, extras: Iterable[str]) -> list[str]:
    """Names of what `lock` pins for the package with these extras, and for what those need.

    The lock says for whom each is ("via"), not with which of their extras: it may be a few more.
    """
    project = tomllib.loads(pyproject)["project"]
    wanted, taken = {_name(each) for each in project["dependencies"]}, set[str]()
    extras = list(extras)
    while extras:
        for each in project["optional-dependencies"][extras.pop()]:
            if _name(each) == project["name"]:
                extras += re.findall(r"[\w-]+", each.partition("[")[2])
            else:
                wanted.add(_name(each))
    users = {
        match["name"].lower(): set(re.findall(r"[\w.-]+", match["via"]))
        for match in _ENTRY.finditer(lock)
    }
    while wanted != taken:
        taken = wanted
        wanted = taken | {name for name, of in users.items() if of & taken}
    return sorted(wanted)


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def main(arguments: list[str]) -> None:
    """Print what is asked for."""
    lock = LOCK.read_text("utf-8")
    names = arguments
    if arguments[:1] == ["--extras"]:
        names = needed(lock, PYPROJECT.read_text("utf-8"), arguments[1:])
    print(entries(lock, names), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
