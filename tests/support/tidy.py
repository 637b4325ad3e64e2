"""The rules of tests/unit/test_tidy.py: what each forbids, and what to do instead.

A check takes parsed modules and returns complaints, so that it can be fed bad snippets too.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# Where each room is, by import name. The rest (tests, bench, tools) is no part of the package.
ROOMS = {
    "mailraft.v1": "proto/mailraft/v1",
    "mailraft.internal": "proto/mailraft/internal",
    "mailraft.wire": "proto/mailraft/wire",
    "mailraft.node": "node",
    "mailraft.router": "router",
    "mailraft.client": "client",
    "mailraft.cluster": "cluster",
}
OUTSIDE = ("tests", "bench", "tools")

PROTO = ("mailraft.v1", "mailraft.internal", "mailraft.wire")
PURE = ("mailraft.node.consensus", "mailraft.node.mailstore")

# Which rooms of ours each may import, besides itself.
IMPORT_DIRECTIONS = {
    "mailraft.v1": PROTO,
    "mailraft.internal": PROTO,
    "mailraft.wire": PROTO,
    "mailraft.router": PROTO,
    "mailraft.client": (*PROTO, "mailraft.router"),
    "mailraft.node": PROTO,
    "mailraft.cluster": (*PROTO, "mailraft.router", "mailraft.client", "mailraft.node"),
}

# Modules that run by themselves, or that only users import: nobody here has to.
ENTRY_POINTS = {
    "mailraft.cluster.cli": "the console script of pyproject.toml",
    "mailraft.cluster.cli.__main__": "how a local cluster starts its processes",
    "mailraft.cluster.demo": "make demo",
    "mailraft.client.metrics": "a client's own figures, for whoever wants them",
}


@dataclass(frozen=True)
class Ban:
    """A name that may not be used: exactly, or with all below it when it ends in a dot."""

    name: str
    instead: str
    inside: tuple[str, ...] = ("mailraft", *OUTSIDE)
    outside: tuple[str, ...] = ()

    def covers(self, module: str) -> bool:
        """True if the ban holds in `module`."""
        return _below(module, self.inside) and not _below(module, self.outside)

    def matches(self, name: str) -> bool:
        """True if `name` is what is banned."""
        return name.startswith(self.name) if self.name.endswith(".") else name == self.name


_CLOCK = "take the time from the command, or from the caller's step(now)"
_CHANCE = "take ids and randomness from the command, or a seeded random.Random by constructor"
_CODEC = "store and send protobuf messages; unpickling runs what the bytes say"
_SYNC = "be sans I/O: return effects, and let the runtime carry them out"

BANNED_NAMES = (
    *(
        Ban(name, _CLOCK, inside=PURE)
        for name in (
            "time.time",
            "time.time_ns",
            "time.monotonic",
            "time.monotonic_ns",
            "time.perf_counter",
            "time.sleep",
            "datetime.datetime.now",
            "datetime.datetime.utcnow",
            "datetime.datetime.today",
            "datetime.date.today",
        )
    ),
    *(
        Ban(name, _CHANCE, inside=PURE)
        for name in ("random.", "secrets.", "uuid.uuid", "uuid.uuid1", "uuid.uuid4", "os.urandom")
    ),
    Ban(
        "print",
        "log through structlog; only commands talk to a terminal",
        inside=("mailraft",),
        outside=("mailraft.cluster.cli", "mailraft.cluster.demo"),
    ),
)
# A generator that is handed in is as deterministic as who made it.
ALLOWED_NAMES = ("random.Random",)

BANNED_IMPORTS = (
    *(Ban(name, _CODEC) for name in ("pickle", "cPickle", "_pickle", "dill", "cloudpickle")),
    *(Ban(name, _CODEC) for name in ("marshal", "shelve")),
    Ban(
        "rocksdict",
        "go through mailraft.node.engine, which knows its traps",
        outside=("mailraft.node.engine", "tests", "bench"),
    ),
    Ban(
        "pysyncobj",
        "go through mailraft.node.consensus, which corrects it",
        outside=("mailraft.node.consensus", "tests", "bench"),
    ),
    *(Ban(name, _SYNC, inside=PURE) for name in ("grpc", "asyncio", "threading", "socket")),
)

# rocksdict ends these silently on corruption. A dict's are fine: mark the line.
BANNED_METHODS = ("items", "keys", "values")
PLAIN_DICT = "# tidy: a plain dict"
ENGINE = ("mailraft.node.engine",)

# In pieces, so that this file passes its own checks.
_UNFINISHED = re.compile(r"\b(?:" + "|".join(("FIX" + "ME", "TO" + "DO", "XX" + "X")) + r")\b")
_PACKAGE_HOSTS = ("py" + "pi.org", "python" + "hosted.org", "arti" + "factory", "dev" + "pi")
_OWN_MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|work)/[\w.]"
    r"|--(?:(?:extra-)?index-url|find-links)|\bfile:///"
    r"|" + "|".join(re.escape(host) for host in _PACKAGE_HOSTS)
)
TEXT_SUFFIXES = frozenset(
    {"", ".cfg", ".ini", ".json", ".lock", ".md", ".proto", ".py", ".pyi", ".sh", ".toml", ".txt"}
    | {".yaml", ".yml"}
)


@dataclass(frozen=True)
class Module:
    """A handwritten Python file: its path below the root, its import name and its text."""

    path: str
    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed text."""
        return ast.parse(self.text, self.path)

    @property
    def is_package(self) -> bool:
        """True for an __init__.py."""
        return self.path.endswith("__init__.py")

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, full name) of everything imported, `from a import b` as a.b."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        return found

    @cached_property
    def names(self) -> list[tuple[int, str]]:
        """(line, full name) of every name and attribute used, imports followed."""
        known: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    known[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    known[alias.asname or alias.name] = f"{self._base(node)}.{alias.name}"
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute) and (dotted := _dotted(node)):
                first, dot, rest = dotted.partition(".")
                found.append((node.lineno, known.get(first, first) + dot + rest))
        return found

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        up = node.level - 1 if self.is_package else node.level
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def modules() -> list[Module]:
    """Every handwritten module of the tree."""
    found = []
    places = [*ROOMS.items(), *((folder, folder) for folder in OUTSIDE)]
    for name, folder in places:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not re.search(r"_pb2(_grpc)?\.py$", path.name):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                if parts[-1] == "__init__":
                    parts = parts[:-1]
                text = path.read_text("utf-8")
                found.append(
                    Module(path.relative_to(ROOT).as_posix(), ".".join((name, *parts)), text)
                )
    return found


def text_files() -> dict[str, str]:
    """Path to text of everything that is tracked or would be, generated stubs left out."""
    made = {".git", ".venv", "build", "dist", ".mailraft", ".hypothesis", "__pycache__"}
    found = {}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if any(part in made or part.endswith(("_cache", ".egg-info")) for part in parts):
            continue
        if path.suffix in TEXT_SUFFIXES and "_pb2" not in path.name and path.is_file():
            found["/".join(parts)] = path.read_text("utf-8", errors="replace")
    return found


def long_files(all_modules: Iterable[Module]) -> Iterator[str]:
    """A file fits a head."""
    for module in all_modules:
        lines = module.text.count("\n")
        if lines > FILE_LINES_MAX:
            yield f"{module.path}: {lines} lines > {FILE_LINES_MAX}: split it by what it knows"


def long_functions(all_modules: Iterable[Module]) -> Iterator[str]:
    """A function fits a screen. Not in tests: a scenario reads like a transcript, at its length."""
    for module in all_modules:
        if _below(module.name, ("tests",)):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield (
                        f"{module.path}:{node.lineno}: {node.name} has {lines} lines > "
                        f"{FUNCTION_LINES_MAX}: name a step of it and move it out"
                    )


def banned_names(all_modules: Iterable[Module]) -> Iterator[str]:
    """Clocks and chance stay out of the pure rooms, print out of all but the commands.

    A reference counts as a call: passing time.monotonic on is using it.
    """
    for module in all_modules:
        bans = [ban for ban in BANNED_NAMES if ban.covers(module.name)]
        for line, name in module.names:
            for ban in bans:
                if ban.matches(name) and name not in ALLOWED_NAMES:
                    yield f"{module.path}:{line}: {name}: {ban.instead}"


def unseeded_generators(all_modules: Iterable[Module]) -> Iterator[str]:
    """In the pure rooms even an allowed generator is not made from the system's entropy."""
    for module in all_modules:
        calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        for call in calls if _below(module.name, PURE) else []:
            seeded = call.args or call.keywords
            if not seeded and (_dotted(call.func) or "").endswith("Random"):
                yield f"{module.path}:{call.lineno}: Random() without a seed: {_CHANCE}"


def banned_imports(all_modules: Iterable[Module]) -> Iterator[str]:
    """Each library that needs care has one importer; the pure rooms do no I/O."""
    for module in all_modules:
        bans = [ban for ban in BANNED_IMPORTS if ban.covers(module.name)]
        for line, name in module.imports:
            for ban in bans:
                if _below(name, (ban.name,)):
                    yield f"{module.path}:{line}: import of {ban.name}: {ban.instead}"


def banned_methods(all_modules: Iterable[Module]) -> Iterator[str]:
    """In the engine nothing is read through items(), keys() or values() of RocksDB."""
    for module in all_modules:
        if not _below(module.name, ENGINE):
            continue
        lines = module.text.splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                line = node.func.end_lineno or node.lineno
                if node.func.attr in BANNED_METHODS and PLAIN_DICT not in lines[line - 1]:
                    yield (
                        f"{module.path}:{line}: .{node.func.attr}() ends silently on corruption: "
                        f"use iter() and check status() (or end the line with `{PLAIN_DICT}`)"
                    )


def wrong_directions(all_modules: Iterable[Module]) -> Iterator[str]:
    """What is imported: proto <- router <- client <- cluster, and proto <- node <- cluster."""
    for module in all_modules:
        room = _room(module.name)
        if room is None:
            continue
        for line, name in module.imports:
            target = _room(name)
            if target not in (None, room, *IMPORT_DIRECTIONS[room]):
                yield (
                    f"{module.path}:{line}: {room} imports {target}: let the composition root "
                    "(mailraft.cluster) hand it in, or move what both need into mailraft.wire"
                )


def dead_modules(all_modules: Iterable[Module]) -> Iterator[str]:
    """Every module is imported by another; a test alone does not keep it alive."""
    all_modules = list(all_modules)
    imported = {
        name
        for module in all_modules
        if not _below(module.name, ("tests",))
        for _, full in module.imports
        # `from a.b import c` may name the module a.b or the module a.b.c.
        for name in (full, full.rpartition(".")[0])
        if name != module.name
    }
    for module in all_modules:
        ours = _room(module.name) is not None and not module.is_package
        if ours and module.name not in imported and module.name not in ENTRY_POINTS:
            yield (
                f"{module.path}: nobody imports {module.name}: use it, remove it, or say in "
                "tidy.ENTRY_POINTS who runs it"
            )


def unlisted_packages(all_modules: Iterable[Module], listed: Iterable[str]) -> Iterator[str]:
    """pyproject.toml lists each folder with modules, and no other."""
    folders = {
        module.name if module.is_package else module.name.rpartition(".")[0]
        for module in all_modules
        if _room(module.name) is not None
    }
    for name in sorted(folders - set(listed)):
        yield f"pyproject.toml: add {name!r} to packages, else the wheel lacks it"
    for name in sorted(set(listed) - folders):
        yield f"pyproject.toml: {name!r} is listed and has no modules: remove it from packages"


def unfinished(files: dict[str, str]) -> Iterator[str]:
    """Nothing is left as a note to self."""
    for path, line, found in _search(files, _UNFINISHED):
        yield f"{path}:{line}: {found}: do it, or write down what is missing in docs/"


def own_machine(files: dict[str, str]) -> Iterator[str]:
    """No file knows on whose machine, or from which package host, it was made."""
    for path, line, found in _search(files, _OWN_MACHINE):
        yield f"{path}:{line}: {found!r}: use a relative path, and name no package host"


def _search(files: dict[str, str], pattern: re.Pattern[str]) -> Iterator[tuple[str, int, str]]:
    for path, text in files.items():
        for match in pattern.finditer(text):
            yield path, text.count("\n", 0, match.start()) + 1, match[0]


def _below(name: str, tops: Iterable[str]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def _room(name: str) -> str | None:
    return next((room for room in ROOMS if _below(name, (room,))), None)


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (value := _dotted(node.value)):
        return f"{value}.{node.attr}"
    return None
