"""The demo's judgement: it must see what is lost, doubled or changed, else its "0" says nothing."""

import hashlib
from pathlib import Path

import pytest

from mailraft.cluster import demo
from mailraft.cluster.corpus import Corpus
from mailraft.cluster.demo_delivery import Kill, Ledger, Plan, Sent
from mailraft.cluster.demo_readback import Comparison, compare
from mailraft.cluster.demo_replica import Body
from mailraft.cluster.errors import ExitCode


def _sent(name: str, raw: bytes) -> Sent:
    return Sent(name, "alice", len(raw), hashlib.sha256(raw).digest())


def _body(raw: bytes) -> Body:
    return Body(len(raw), hashlib.sha256(raw).digest())


def _judged(bodies: dict[str, Body | str], listed: list[str] | None = None) -> Comparison:
    """What is said of one account that got M1 (one), M2 (two) and M3 (one again)."""
    ledger = Ledger()
    ledger.stored["alice"] = {
        "M1": _sent("1.eml", b"one"),
        "M2": _sent("2.eml", b"two"),
        "M3": _sent("1.eml", b"one"),
    }
    ledger.unacknowledged.append((_sent("4.eml", b"four"), "NO_LEADER"))
    comparison = Comparison()
    compare("n1", "alice", listed or list(bodies), bodies, ledger, comparison)
    return comparison


GOOD = {"M1": _body(b"one"), "M2": _body(b"two"), "M3": _body(b"one")}


def test_all_is_there() -> None:
    """Every delivery is identical, repeated messages too."""
    judged = _judged({**GOOD})
    assert judged.clean
    assert (judged.read, judged.identical) == (3, 3)


def test_a_missing_message_is_lost() -> None:
    """Also when the same message is there from another delivery."""
    judged = _judged({name: GOOD[name] for name in ("M1", "M2")})
    assert judged.lost == {("alice", "M3")}
    assert not judged.clean
    assert judged.first_bad.startswith("1.eml (M3, 3 bytes) on n1")


def test_a_body_that_cannot_be_read_is_lost() -> None:
    """With what the replica said."""
    judged = _judged({**GOOD, "M2": "blob is damaged here"})
    assert judged.lost == {("alice", "M2")}
    assert judged.first_bad.endswith("blob is damaged here")


@pytest.mark.parametrize("raw", [b"twO", b"two\n", b"", b"one"])
def test_other_bytes_are_different(raw: bytes) -> None:
    """One byte less, more or other; also another message's bytes."""
    judged = _judged({**GOOD, "M2": _body(raw)})
    assert judged.different == {("alice", "M2")}
    assert judged.identical == 2


def test_a_message_that_nobody_was_told_of_is_a_duplicate() -> None:
    """A delivery that was done twice shows as one message id more."""
    judged = _judged({**GOOD, "M9": _body(b"two")})
    assert judged.duplicates == {("alice", "M9")}


def test_a_message_that_is_listed_twice_is_a_duplicate() -> None:
    """Within one listing."""
    judged = _judged({**GOOD}, ["M1", "M2", "M3", "M2"])
    assert judged.duplicates == {("alice", "M2")}


def test_an_unacknowledged_delivery_may_be_there_once() -> None:
    """Its answer was lost, not its mail; but only once."""
    judged = _judged({**GOOD, "M4": _body(b"four")})
    assert judged.clean
    assert judged.unacknowledged_stored == {("alice", "M4")}
    twice = _judged({**GOOD, "M4": _body(b"four"), "M5": _body(b"four")})
    assert twice.duplicates == {("alice", "M5")}


def test_the_silence_after_the_kill() -> None:
    """The longest gap around the kill on the shards that were led, whatever others did."""
    ledger = Ledger(began_s=0.0)
    ledger.times_s[1] = [0.1, 0.9, 1.05, 2.5, 2.6, 9.0]
    ledger.times_s[2] = [0.5, 1.9, 2.0]
    ledger.times_s[3] = [0.2, 8.0]
    assert ledger.silence_s([1], 1.0) == pytest.approx(1.45)
    assert ledger.silence_s([1, 2], 1.0) == pytest.approx(1.45)
    assert ledger.silence_s([2], 1.0) == pytest.approx(1.4)
    assert ledger.silence_s([4], 1.0) is None


class _Deliveries:
    """As far as an outcome looks at them."""

    def __init__(self, plan: Plan, killed_at: int) -> None:
        self.plan, self.ledger = plan, Ledger(acknowledged=plan.messages)
        self.kill = Kill(node=1, at_s=1.0, acknowledged=killed_at)


@pytest.mark.parametrize(
    ("killed_at", "passes"), [(0, False), (24, False), (25, True), (75, True), (76, False)]
)
def test_the_kill_has_to_be_in_the_middle(tmp_path: Path, killed_at: int, passes: bool) -> None:
    """From 25% to 75% of the acknowledgements: else the run proves little, and fails."""
    (tmp_path / "a.eml").write_bytes(b"x")
    plan = Plan.of(Corpus(tmp_path), 100)
    read = Comparison(identical=300)
    outcome = demo.Outcome(_Deliveries(plan, killed_at), read, 0)  # type: ignore[arg-type]
    assert (outcome.problems() == []) is passes


def test_what_is_lost_fails_the_run(tmp_path: Path) -> None:
    """So does what is doubled, changed, or was never acknowledged."""
    (tmp_path / "a.eml").write_bytes(b"x")
    plan = Plan.of(Corpus(tmp_path), 100)
    for name in ("lost", "different", "duplicates"):
        comparison = Comparison()
        getattr(comparison, name).add(("alice", "M1"))
        outcome = demo.Outcome(_Deliveries(plan, 50), comparison, 0)  # type: ignore[arg-type]
        assert outcome.problems() == ["mail was lost, doubled or changed"]
    deliveries = _Deliveries(plan, 50)
    deliveries.ledger.unacknowledged.append((_sent("a.eml", b"x"), "NO_LEADER: no leader"))
    read = Comparison(identical=300)
    (problem,) = demo.Outcome(deliveries, read, 0).problems()  # type: ignore[arg-type]
    assert "a.eml: NO_LEADER" in problem


def test_what_was_not_read_back_fails_the_run(tmp_path: Path) -> None:
    """A replica that was passed over proves nothing."""
    (tmp_path / "a.eml").write_bytes(b"x")
    plan = Plan.of(Corpus(tmp_path), 100)
    read = Comparison(identical=299)
    (problem,) = demo.Outcome(_Deliveries(plan, 50), read, 0).problems()  # type: ignore[arg-type]
    assert problem == "not all was read back: 299 messages"


def test_no_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path without mail: one line, the status for usage, and no cluster was started."""
    status = demo.main(["--corpus", str(tmp_path / "none"), "--dir", str(tmp_path / "d")])
    assert status == ExitCode.USAGE
    assert "error: there is no corpus at" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()


def test_a_folder_that_is_in_use(tmp_path: Path) -> None:
    """--dir must be empty: the demo would leave its own data among others."""
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit) as caught:
        demo.main(["--dir", str(tmp_path)])
    assert caught.value.code == ExitCode.USAGE
