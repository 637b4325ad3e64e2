"""make demo: real mail through a real cluster, a leader killed in the middle, everything compared.

    python -m mailraft.cluster.demo [--corpus PATH] [--seed N] [--dir FOLDER]

Exit status 0: nothing was lost, doubled or changed, and the kill landed in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mailraft.client import MailraftError
from mailraft.cluster import corpus
from mailraft.cluster.demo_delivery import Deliveries, Plan
from mailraft.cluster.demo_readback import Comparison, read_back
from mailraft.cluster.errors import ClusterError, ExitCode
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.narrator import Narrator
from mailraft.wire.limits import MESSAGE_MAX_BYTES

NODES, SHARDS, ACCOUNTS = 3, 8, 64
# The messages that come with the repository are delivered again and again, up to this many.
DEFAULT_MESSAGES = 2_000
# Acknowledgements before the kill, as a part of all: else it was not in the middle.
KILL_FROM, KILL_TO = 0.25, 0.75
SEED_MAX = 2**31
BLOCK_BYTES = 512  # what st_blocks counts, whatever the file system


@dataclass(frozen=True, slots=True)
class Options:
    corpus: Path | None
    seed: int
    folder: Path | None


@dataclass(slots=True)
class Outcome:
    """What a run found."""

    deliveries: Deliveries
    comparison: Comparison
    disk_bytes: int

    def problems(self) -> list[str]:
        """Why the run failed; none: it passed."""
        ledger, kill = self.deliveries.ledger, self.deliveries.kill
        part = kill.acknowledged / max(self.deliveries.plan.messages, 1)
        found = []
        if not self.comparison.clean:
            found.append("mail was lost, doubled or changed")
        elif self.comparison.identical != ledger.acknowledged * NODES:
            found.append(f"not all was read back: {self.comparison.identical} messages")
        if ledger.unacknowledged:
            sent, why = ledger.unacknowledged[0]
            count = len(ledger.unacknowledged)
            found.append(f"{count} deliveries were not acknowledged, first {sent.name}: {why}")
        if not kill.at_s:
            found.append("no node was killed: the deliveries were over too soon")
        elif not KILL_FROM <= part <= KILL_TO:
            found.append(
                f"the kill came at {part:.0%}, not between {KILL_FROM:.0%} and {KILL_TO:.0%}"
            )
        return found

    def rows(self) -> list[tuple[str, str]]:
        """The table."""
        ledger, kill, compared = self.deliveries.ledger, self.deliveries.kill, self.comparison
        silence_s = ledger.silence_s(kill.shards, kill.at_s) if kill.at_s else None
        ratio = self.disk_bytes / max(ledger.size_bytes, 1)
        return [
            ("delivered", f"{ledger.sent:,} ({ledger.size_bytes / 1e6:.1f} MB)"),
            ("acknowledged", f"{ledger.acknowledged:,}"),
            (
                "read back identical",
                f"{compared.identical:,} ({NODES} replicas of each)",
            ),
            ("lost", f"{len(compared.lost):,}"),
            ("duplicates", f"{len(compared.duplicates):,}"),
            ("different", f"{len(compared.different):,}"),
            ("killed at", f"{kill.acknowledged / max(ledger.sent, 1):.0%} of acknowledgements"),
            (
                "time without writes",
                "none came back"
                if silence_s is None
                else f"{silence_s:.2f} s on the {len(kill.shards)} shards that n{kill.node} led",
            ),
            ("messages/s", f"{ledger.per_second:,.0f} (kill and election included)"),
            ("disk bytes per mail byte", f"{ratio:.2f} ({ratio / NODES:.2f} a replica)"),
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns its exit status."""
    options = _parse(arguments)
    narrator = Narrator()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C
    made = options.folder is None
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mailraft-demo-"))
    status = ExitCode.FAILED
    try:
        status = asyncio.run(_run(narrator, options, folder))
    except KeyboardInterrupt:
        narrator.line("interrupted; nothing is left running")
        status = ExitCode.INTERRUPTED
    except ClusterError as error:
        narrator.line(f"error: {error.message}" + (f": {error.hint}" if error.hint else ""))
        status = error.exit_code
    except MailraftError as error:
        narrator.line(f"error: {error.message} ({error.name})")
    if made and status in (ExitCode.OK, ExitCode.INTERRUPTED):
        shutil.rmtree(folder, ignore_errors=True)
    if status == ExitCode.OK:
        _tell_more(narrator)
    elif status != ExitCode.INTERRUPTED:
        narrator.line(f"seed {options.seed}; logs in {folder / 'logs'}, data beside them")
    return status


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m mailraft.cluster.demo", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        help="packed corpus folder (.tar.zst), tree of .eml, Maildir or mbox file",
    )
    parser.add_argument("--seed", type=int, default=None, help="of who gets which message")
    parser.add_argument("--dir", type=Path, help="empty folder to use, and to leave there")
    given = parser.parse_args(arguments)
    if given.dir is not None and given.dir.exists() and any(given.dir.iterdir()):
        parser.error(f"--dir {given.dir} is not empty")
    seed = random.randrange(1, SEED_MAX) if given.seed is None else given.seed
    return Options(given.corpus, seed, given.dir)


async def _run(narrator: Narrator, options: Options, folder: Path) -> ExitCode:
    began = time.monotonic()
    narrator.line(f"mailraft demo, seed {options.seed}, in {folder}")
    source = corpus.Corpus(options.corpus or corpus.default_path())
    with narrator.step(f"read the {source.kind} {source.path}"):
        plan = Plan.of(source, 1 if options.corpus else DEFAULT_MESSAGES)
    _tell_plan(narrator, plan)
    outcome = await _through_a_cluster(narrator, options, folder, plan)
    problems = outcome.problems()
    narrator.line()
    for name, value in outcome.rows():
        narrator.line(f"  {name:<26}{value}")
    narrator.line(f"  {'total time':<26}{time.monotonic() - began:.1f} s")
    narrator.line()
    if outcome.comparison.first_bad:
        narrator.line(f"first bad message: {outcome.comparison.first_bad}")
    for problem in problems:
        narrator.line(f"FAILED: {problem}")
    if not problems:
        narrator.line("PASSED: every acknowledged message is on every replica, byte for byte, once")
    return ExitCode.FAILED if problems else ExitCode.OK


def _tell_plan(narrator: Narrator, plan: Plan) -> None:
    times = f", each {plan.repeats} times" if plan.repeats > 1 else ""
    narrator.note(f"{plan.messages:,} deliveries, {plan.size_bytes / 1e6:.1f} MB{times}")
    if plan.left_out:
        limit = f"empty or above {MESSAGE_MAX_BYTES:,} bytes"
        narrator.note(f"{len(plan.left_out)} left out, {limit}, first {plan.left_out[0]}")


async def _through_a_cluster(
    narrator: Narrator, options: Options, folder: Path, plan: Plan
) -> Outcome:
    rng = random.Random(options.seed)
    cluster = LocalCluster(folder, LocalOptions(nodes=NODES, shards=SHARDS))
    accounts = [f"demo-{number:02}" for number in range(1, ACCOUNTS + 1)]
    try:
        with narrator.step(f"start {NODES} nodes and a router as processes, {SHARDS} shards"):
            await cluster.launch()
            await cluster.wait_ready()
        async with cluster.client() as client:
            with narrator.step(f"create {len(accounts)} accounts"):
                await asyncio.gather(*(client.create_account(account) for account in accounts))
            with narrator.counted(f"deliver {plan.messages:,} messages", plan.messages) as progress:
                deliveries = Deliveries(
                    plan, accounts, cluster, rng, progress=progress, note=narrator.note
                )
                await deliveries.run(client)
        with narrator.step("read everything back from every replica, and compare"):
            compared = await read_back(
                cluster.map, cluster.credentials(), accounts, deliveries.ledger
            )
        disk_bytes = sum(_bytes_on_disk(cluster.data_folder(node)) for node in cluster.nodes)
    finally:
        with narrator.step("stop the cluster"):
            await cluster.stop()
    return Outcome(deliveries, compared, disk_bytes)


def _bytes_on_disk(folder: Path) -> int:
    """What the files of a folder really take. They may come and go meanwhile."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(path) / file).stat().st_blocks * BLOCK_BYTES
            except FileNotFoundError:
                continue
    return total


def _tell_more(narrator: Narrator) -> None:
    command = _shown(Path(sys.executable).parent / "mailraft")
    message = _shown(corpus.default_path() / "plain.eml")
    narrator.line("next, the same cluster to play with:")
    narrator.line(
        f"  {command} up                  # until Ctrl-C; the others in a second terminal"
    )
    narrator.line(f"  {command} mail deliver {message} --to alice --create")
    narrator.line(f"  {command} mail list alice")


def _shown(path: Path) -> str:
    """Relative to where we are, if it is below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
