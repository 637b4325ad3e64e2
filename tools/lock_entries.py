"""Prints the named packages' entries of requirements.lock, hashes included.

`make venv` installs the build tools from them before everything else.
"""

import re
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.lock"


def entries(lock: str, names: list[str]) -> str:
    """The lines of `lock` that pin `names`; KeyError when one of them is not pinned."""
    # An entry is `name==version`, then its hashes, each line but the last ending in "\".
    found = {
        match["name"].lower(): match[0]
        for match in re.finditer(r"^(?P<name>[\w.-]+)==(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    }
    return "".join(found[name] for name in names)


if __name__ == "__main__":
    print(entries(LOCK.read_text("utf-8"), sys.argv[1:]), end="")
