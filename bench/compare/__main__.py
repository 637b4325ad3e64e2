"""make compare: mailraft beside etcd, PostgreSQL, NATS and Dovecot, into docs/compare.md."""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
from pathlib import Path

from bench.compare import report
from bench.compare.daemon import make_folder
from bench.compare.mails import ROOT
from bench.compare.results import QUICK, Results, Scale
from bench.compare.rows import OURS, ROWS
from bench.compare.run import Run, servers


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 5 minutes, less of everything")
    parser.add_argument("--only", default="", help="peers, with commas; mailraft is always there")
    parser.add_argument("--rows", default="", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--dir", type=Path, default=None, help="where the servers keep their data")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    only, chosen = (
        set(filter(None, asked.only.split(","))),
        set(filter(None, asked.rows.split(","))),
    )
    unknown = chosen - {row.name for row in ROWS} | only - {each.name for each in servers()}
    if unknown:
        print(f"there is no {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    rows = [row for row in ROWS if not chosen or row.name in chosen]
    peers = []
    for server in servers():
        if server.name != OURS and only and server.name not in only:
            continue
        if missing := server.missing():
            print(f"left out: {server.title}, for lack of {missing} (make compare-deps)")
        else:
            peers.append(server)
    # Only a whole run writes the page of the documentation.
    whole = not (asked.quick or chosen or only)
    place = ROOT / "docs" if whole else ROOT / "build"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def tell(results: Results) -> None:
        report.write(rows, results, ROOT / "build")

    with tempfile.TemporaryDirectory(prefix="mailraft-compare-", dir=asked.dir) as folder:
        Path(folder).chmod(0o711)
        data = make_folder(Path(folder) / "data")
        results = asyncio.run(
            Run(data, peers, rows, QUICK if asked.quick else Scale(), tell).everything()
        )
    print(report.aims_table(rows, results.samples))
    report.write(rows, results, place)
    print(f"written to {place.name}/compare.md after {results.took_s:.0f} s")
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
