"""Generates the stubs from proto/, and checks the contract. All offline.

generate  write the stubs beside the .proto files
check     fail with a diff when the stubs are not what `generate` writes
lint      buf lint
breaking  buf breaking, against the last release that CHANGELOG.md records

protoc compiles, since it finds google/rpc in site-packages; buf judges what it compiled.
"""

import difflib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import google.rpc

from releases import CHANGELOG, last_released

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
BIN = Path(sys.executable).parent
SITE_PACKAGES = Path(next(iter(google.rpc.__path__))).parent.parent
STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def main(argv: list[str]) -> int:
    """Runs one of the commands above; returns its exit code."""
    commands: dict[str, Callable[[], int]] = {
        "generate": generate,
        "check": check,
        "lint": lint,
        "breaking": breaking,
    }
    if len(argv) != 1 or argv[0] not in commands:
        print(f"usage: protos.py {'|'.join(commands)}", file=sys.stderr)
        return 2
    return commands[argv[0]]()


def generate() -> int:
    """Writes the stubs and removes those whose .proto is gone."""
    with tempfile.TemporaryDirectory() as folder:
        made = _stubs_made_in(Path(folder))
    for name in _stubs_found() - made.keys():
        (PROTO / name).unlink()
        print(f"removed proto/{name}")
    for name, content in sorted(made.items()):
        target = PROTO / name
        if not target.exists() or target.read_bytes() != content:
            target.write_bytes(content)
            print(f"wrote proto/{name}")
    return 0


def check() -> int:
    """Compares the stubs with freshly generated ones."""
    with tempfile.TemporaryDirectory() as folder:
        made = _stubs_made_in(Path(folder))
    found = _stubs_found()
    differing = [
        name
        for name in sorted(made.keys() | found)
        if name not in made or name not in found or (PROTO / name).read_bytes() != made[name]
    ]
    for name in differing:
        now = (PROTO / name).read_text("utf-8") if name in found else ""
        sys.stdout.writelines(
            difflib.unified_diff(
                now.splitlines(keepends=True),
                made.get(name, b"").decode().splitlines(keepends=True),
                f"proto/{name} as it is",
                f"proto/{name} as generated",
            )
        )
    if differing:
        print(f"{len(differing)} stubs differ from their .proto: run `make proto`")
    return 1 if differing else 0


def lint() -> int:
    """Judges the contract by the rules of proto/buf.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        return _buf("lint", compiled(PROTO, Path(folder) / "now.binpb"))


def breaking() -> int:
    """Judges whether peers and stored data of the last release still understand the contract."""
    with tempfile.TemporaryDirectory() as folder:
        version, before = last_release(Path(folder))
        if before is None:
            return 0
        now = compiled(PROTO, Path(folder) / "now.binpb")
        print(f"against {version}")
        return _buf("breaking", now, "--against", str(before), "--against-config", str(_RULES))


def last_release(folder: Path) -> tuple[str, Path | None]:
    """The version that CHANGELOG.md records last, and its contract, compiled into the folder.

    Raises SystemExit when git does not have it.
    """
    release = last_released(CHANGELOG.read_text("utf-8"))
    if release is None:
        print("skipped: CHANGELOG.md records no released commit yet")
        return "", None
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", f"{release.commit}", "proto"],
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        reason = archive.stderr.decode().strip()
        raise SystemExit(f"cannot read release {release.version} from git: {reason}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return release.version, compiled(folder / "proto", folder / "before.binpb")


_RULES = PROTO / "buf.yaml"


def _buf(command: str, contract: Path, *options: str) -> int:
    # --path: the compiled set holds what we import too, which is not ours to judge.
    arguments = [str(BIN / "buf"), command, str(contract), "--config", str(_RULES), *options]
    return subprocess.run([*arguments, "--path", "mailraft"], check=False).returncode


def compiled(source: Path, target: Path) -> Path:
    """One descriptor set of everything in `source`, with the positions buf reports."""
    _protoc(
        source,
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={target}",
    )
    return target


def _stubs_made_in(folder: Path) -> dict[str, bytes]:
    _protoc(
        PROTO,
        f"--python_out={folder}",
        f"--grpc_python_out={folder}",
        f"--mypy_out=quiet:{folder}",
        f"--mypy_grpc_out=quiet:{folder}",
        f"--plugin=protoc-gen-mypy={BIN / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={BIN / 'protoc-gen-mypy_grpc'}",
    )
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _stubs_found() -> set[str]:
    paths = [path for pattern in STUB_PATTERNS for path in PROTO.rglob(pattern)]
    return {path.relative_to(PROTO).as_posix() for path in paths}


def _protoc(source: Path, *options: str) -> None:
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.proto"))
    includes = [f"-I{source}", f"-I{SITE_PACKAGES}"]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *includes, *options, *names], check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"protoc failed on {source}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
