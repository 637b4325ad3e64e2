"""deploy/: the units as systemd reads them, and that what they run and wait for is what we have."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import gen_docs
from mailraft.cluster.compose import STOP_MARGIN_S
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.settings import NodeSettings, RouterSettings
from tidy import ROOT

SYSTEMD = ROOT / "deploy/systemd"
NODE, ROUTER = SYSTEMD / "mailraft-node@.service", SYSTEMD / "mailraft-router.service"
UNITS = pytest.mark.parametrize("unit", [NODE, ROUTER], ids=["node", "router"])
EXPOSURE_MAX = 20  # in tenths, as `systemd-analyze security` counts: 0 is none, 100 all
needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


def _service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keeps capitals
    parser.read_string(unit.read_text("utf-8"))
    return parser["Service"]


def _copied(unit: Path, folder: Path, text: str = "") -> Path:
    """The unit as an instance, running a program that is there: systemd wants to see it."""
    copy = folder / unit.name.replace("@", "@3")
    program = _service(unit)["ExecStart"].split()[0]
    copy.write_text((text or unit.read_text("utf-8")).replace(program, shutil.which("true") or ""))
    return copy


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=50, check=False
    )


@needs_systemd_analyze
@UNITS
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    """Without a word: what it only warns of (an unknown key) would be ignored."""
    copy = _copied(unit, tmp_path)
    told = _analyze("verify", str(copy))
    about = [line for line in told.stderr.splitlines() if unit.stem.split("@")[0] in line]
    assert (told.returncode, about) == (0, []), told.stderr


@needs_systemd_analyze
def test_a_bad_unit_is_found(tmp_path: Path) -> None:
    """What the test above relies on: a misspelt key is told."""
    bad = NODE.read_text("utf-8").replace("LimitNOFILE", "LimitNOFILES")
    told = _analyze("verify", str(_copied(NODE, tmp_path, bad)))
    assert "LimitNOFILES" in told.stderr


@needs_systemd_analyze
@UNITS
def test_the_unit_is_hardened(unit: Path, tmp_path: Path) -> None:
    """An intruder gets little: it stays in the range that systemd calls OK."""
    copy = _copied(unit, tmp_path)
    told = _analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", str(copy))
    if "unrecognized option" in told.stderr:
        pytest.skip("this systemd-analyze (before 250) cannot judge units offline")
    assert told.returncode == 0, told.stdout + told.stderr


@UNITS
def test_the_unit_runs_our_command(unit: Path) -> None:
    """With arguments that it takes, and the settings that operations.md writes."""
    program, name, *arguments = shlex.split(_service(unit)["ExecStart"])
    (command,) = (each for path, each, _ in gen_docs.commands() if path == f"mailraft {name}")
    config = command.make_context(name, arguments).params["config"]
    operations = (ROOT / "docs/operations.md").read_text("utf-8")
    assert str(config).replace("%i", "1") in operations
    assert str(Path(program).parents[1]) in operations


@UNITS
def test_the_unit_waits_for_a_clean_stop(unit: Path) -> None:
    """By default a process leaves long before systemd would kill it; its mistakes it keeps."""
    grace, drain = (
        kind.model_fields[name].default
        for kind, name in ((NodeSettings, "stop_grace_s"), (RouterSettings, "drain_s"))
    )
    service = _service(unit)
    assert float(service["TimeoutStopSec"]) > grace + drain + STOP_MARGIN_S
    assert service["KillSignal"] == "SIGTERM"
    assert service["Restart"] == "on-failure"
    assert int(service["RestartPreventExitStatus"]) == ExitCode.USAGE


def test_the_container_is_marked_as_untested() -> None:
    """Until an engine runs in CI, whoever reads them is told. No image names a host."""
    for name in ("Containerfile", "compose.yaml"):
        text = (ROOT / "deploy/container" / name).read_text("utf-8")
        assert text.startswith("# UNTESTED")
        images = re.findall(r"^(?: *image: |ARG PYTHON_IMAGE=)(.+)$", text, re.MULTILINE)
        assert images
        assert not [image for image in images if "/" in image]
