"""From one authority to another: the three steps, in their order only, and none by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from mailraft.cluster import certs
from mailraft.cluster.certs import Step
from mailraft.cluster.errors import CertificateError
from mailraft.wire.access import Role


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority and what a cluster of one node needs."""
    certs.ensure(tmp_path, certs.names_of([1]))
    return tmp_path


def _trusted(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())


def _signer(folder: Path, name: str) -> x509.Certificate:
    """Which of the trusted ones signed it; fails if none did."""
    (certificate,) = x509.load_pem_x509_certificates((folder / f"{name}.pem").read_bytes())
    for each in _trusted(folder):
        try:
            certificate.verify_directly_issued_by(each)
        except Exception:  # noqa: BLE001, S112  # of another
            continue
        return each
    pytest.fail(f"nobody who is trusted signed {name}")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_steps_lead_to_a_new_authority(folder: Path) -> None:
    """Two are trusted in between; who signs changes in the second step, with every certificate."""
    (old,) = _trusted(folder)
    assert certs.roll(folder, Step.TRUST) == ["ca-next"]
    first, new = _trusted(folder)
    assert first == old == _signer(folder, "node-1")
    assert sorted(certs.roll(folder, Step.SIGN)) == sorted(n for n, _ in certs.names_of([1]))
    assert _trusted(folder) == [new, old]
    assert _signer(folder, "node-1") == _signer(folder, "admin") == new
    assert certs.ensure(folder, certs.names_of([1])) == []
    assert certs.roll(folder, Step.FORGET) == ["ca"]
    assert _trusted(folder) == [new]
    assert certs.ensure(folder, [("late", Role.SERVICE)]) == ["late"]
    assert _signer(folder, "late") == new
    assert not list(folder.glob("ca-next*"))


@pytest.mark.parametrize(
    ("taken", "step", "hint"),
    [
        ((), Step.SIGN, "begin: --authority trust"),
        ((), Step.FORGET, "begin: --authority trust"),
        ((Step.TRUST,), Step.TRUST, "go on: --authority sign"),
        ((Step.TRUST,), Step.FORGET, "first: --authority sign"),
        ((Step.TRUST, Step.SIGN), Step.SIGN, "begin: --authority trust"),
        ((Step.TRUST, Step.SIGN, Step.FORGET), Step.FORGET, "begin: --authority trust"),
    ],
)
def test_a_step_out_of_order_changes_nothing(
    folder: Path, taken: tuple[Step, ...], step: Step, hint: str
) -> None:
    """It says which is next."""
    for each in taken:
        certs.roll(folder, each)
    before = _contents(folder)
    with pytest.raises(CertificateError) as refused:
        certs.roll(folder, step)
    assert refused.value.hint == hint
    assert _contents(folder) == before


def test_an_authority_is_not_forgotten_while_it_is_needed(folder: Path) -> None:
    """A certificate that it signed would be refused everywhere."""
    certs.roll(folder, Step.TRUST)
    kept = (folder / "client.pem").read_bytes()
    certs.roll(folder, Step.SIGN)
    (folder / "client.pem").write_bytes(kept)
    with pytest.raises(CertificateError, match="signed client"):
        certs.roll(folder, Step.FORGET)
    certs.rotate(folder)
    assert certs.roll(folder, Step.FORGET) == ["ca"]


def test_dry_runs_change_nothing(folder: Path) -> None:
    """They tell what would be made, and refuse what would be refused."""
    for step in Step:
        before = _contents(folder)
        told = certs.roll(folder, step, dry_run=True)
        assert certs.rotate(folder, dry_run=True)
        assert _contents(folder) == before
        assert certs.roll(folder, step) == told


def test_without_the_key_of_the_authority_nothing_is_made(folder: Path) -> None:
    """Neither certificates nor steps."""
    (folder / "ca.key").unlink()
    for step in Step:
        with pytest.raises(CertificateError):
            certs.roll(folder, step)
    with pytest.raises(CertificateError):
        certs.rotate(folder)


@pytest.mark.parametrize("name", ["ca", "ca-next", "", "../x", "a/b", "a\nb", "ü", ".hidden"])
def test_some_names_are_given_to_nobody(folder: Path, name: str) -> None:
    """Those of the authority, and what is no plain file name."""
    before = _contents(folder)
    with pytest.raises(CertificateError, match="cannot be the name"):
        certs.issue(folder, name, Role.SERVICE)
    assert _contents(folder) == before


class _CutOffError(Exception):
    pass


@pytest.mark.parametrize("step", Step)
def test_a_step_that_was_cut_off_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """Wherever it was: until then every certificate there is trusted, and then all is as it would
    have been without.
    """
    taken = [Step.TRUST, Step.SIGN, Step.FORGET]
    crashes = 0
    for survives in range(100):
        folder = tmp_path / str(survives)
        certs.ensure(folder, certs.names_of([1]))
        for before in taken[: taken.index(step)]:
            certs.roll(folder, before)
        with monkeypatch.context() as dies:
            _die_after(dies, survives)
            try:
                certs.roll(folder, step)
            except _CutOffError:
                crashes += 1
            else:
                break
        for name, _ in certs.names_of([1]):
            if (folder / f"{name}.pem").exists():
                _signer(folder, name)
        try:
            certs.roll(folder, step)
        except CertificateError:  # all but its last file was gone
            assert not (folder / "ca-next.pem").exists()
        for after in taken[taken.index(step) + 1 :]:
            certs.roll(folder, after)
        (new,) = _trusted(folder)
        assert {_signer(folder, name) for name, _ in certs.names_of([1])} == {new}
        assert not [path for path in folder.iterdir() if path.suffix not in (".pem", ".key")]
    assert crashes >= {Step.TRUST: 3, Step.SIGN: 10, Step.FORGET: 1}[step]


def _die_after(dies: pytest.MonkeyPatch, changes: int) -> None:
    """The process ends before the change to a file that follows so many."""
    left = changes
    for kind in ("replace", "unlink"):
        real = getattr(Path, kind)

        def change(path: Path, *given: object, real: object = real, **named: object) -> object:
            nonlocal left
            if path.exists():
                if not left:
                    raise _CutOffError
                left -= 1
            return real(path, *given, **named)  # type: ignore[operator]

        dies.setattr(Path, kind, change)
