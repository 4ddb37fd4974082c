"""bq beside its peers, in one command (make bench).

    python -m compare --quick
    python -m compare --data vectors.npy --rows 100000
    python -m compare --server vchord="host=localhost dbname=postgres user=me"
    python -m compare --table build/bench/results.json
    python -m compare --publish build/bench/results.json

Run with benchmarks/ on PYTHONPATH, as make does.  Peers: pgvector (HNSW on vector, halfvec and bit
with re-ranking, IVFFlat, exact scan) and bq (on vectors, on codes) in one embedded server, each in
a table of its own; Faiss, hnswlib and USearch in process; whatever else a server has that --server
names.  A peer that cannot be had is in the table all the same, with the reason.

All have the same rows, the same queries, which are not among the rows, and ask for ten rows by
cosine distance.  Recall is the share of the ten nearest by comparing all rows in float32.
Statements are prepared, with binary parameters and results, by a client in Python, in processes
that do nothing else.  Servers use one process for a query and for a build; libraries one thread.

- build       fill a table, make the index: seconds, memory of its own that the process gained
- curves      recall and time of each setting; then all peers in turn, each at its fastest setting
              of recall .95 and .99: percentiles, and medians of the ratios within a round
- clients     queries per second of one client and of two
- filters     with a condition that keeps one row in ten, or one in a hundred, at random
- cold        the first queries after a restart with the files out of the page cache
- insertion   rows per second by COPY of a hundred

Results are written as they come, so that an interrupted run keeps what it had.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from common import SETTINGS, describe
from sets import SEED, K

from . import data as sets_
from . import report
from .libraries import LIBRARIES
from .measure import DEFAULT, PARTS, QUICK, REFERENCE, Database, Effort, Run, run_parts
from .peers import Peer, drop_schema, sql_peers


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.table is not None:
        print(report.table(json.loads(options.table.read_text())))
        return 0
    if options.publish is not None:
        publish(json.loads(options.publish.read_text()))
        return 0
    effort = QUICK if options.quick else DEFAULT
    if options.rows is not None:
        effort = dataclasses.replace(effort, rows=options.rows)
    try:
        data, about = sets_.load(options.data, effort.rows)
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    announce(data, about, effort, options)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"parts": {}, "peers": {}}
    try:
        measure(data, about, effort, options, results)
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return 130
    finally:
        if results["peers"]:
            write_report(results, options.out)
    return 1 if any("failed" in peer for peer in results["peers"].values()) else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="rows: a file .npy, or a folder of sets; default: the demo's"
    )
    parser.add_argument("--rows", type=int, help=f"[{DEFAULT.rows:,}; quick {QUICK.rows:,}]")
    parser.add_argument("--quick", action="store_true", help="fewer rows, settings and rounds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", nargs="+", help="those whose names contain one of these")
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="NAME=DSN",
        help="another server, measured too: vchordrq, diskann, HNSW and bq, as far as it has them",
    )
    parser.add_argument("--postgres", type=int, default=18, help="embedded server [18]")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="[build/bench]")
    parser.add_argument("--table", type=Path, help="show the table of a results.json; run nothing")
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="RESULTS",
        help="keep a results.json as published.json; make docs/comparison.md's table and picture",
    )
    options = parser.parse_args(arguments)
    for server in options.server:
        name, _, dsn = server.partition("=")
        if not name or not ("=" in dsn or "://" in dsn):
            parser.error(f"expected --server NAME=DSN, got {server!r}")
    return options


def announce(data: sets_.Data, about: str, effort: Effort, options: argparse.Namespace) -> None:
    """Say what it will take, before it starts."""
    n, dim = data.base.shape
    work = n * dim / (60_000 * 384)
    minutes = 1.5 + 4 * work if options.quick else 5 + 10 * work
    # tables and indexes of nine peers, as much again for the log of it, an empty server
    disk = n * (dim * 100 + 8000) / 1e9 + 0.5
    print(f"data:       {about}; {n:,} x {dim}, {len(data.queries)} queries held out")
    print(
        f"takes:      about {minutes:.0f} minutes on two idle cores, {disk:.1f} GB of disk for now"
    )
    print(
        f"writes:     {options.out}/results.json as it goes; then table.md and curves.png\n",
        flush=True,
    )


def choose(peers: list[Peer], wanted: list[str] | None) -> list[Peer]:
    if wanted is None:
        return peers
    return [peer for peer in peers if any(w.lower() in peer.name.lower() for w in wanted)]


def measure(
    data: sets_.Data,
    about: str,
    effort: Effort,
    options: argparse.Namespace,
    results: dict[str, Any],
) -> None:
    """Start servers and processes, run the parts, and stop all of it."""

    def save() -> None:
        # at once or not at all: an interruption must not leave half a file
        path = options.out / "results.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        partial.replace(path)

    schema = f"bq_compare_{os.getpid()}"
    servers = dict(server.split("=", 1) for server in options.server)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server may run as another user
        (folder / "arrays").mkdir()
        data.save(folder / "arrays")
        database = Database(folder / "server", options.postgres)
        run = None
        try:
            dsn = database.server.dsn
            with psycopg.connect(dsn, autocommit=True) as conn:
                memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
                results["about"] = describe(
                    conn,
                    started=time.strftime("%Y-%m-%d"),
                    memory=f"{memory / 2**30:.0f} GB",
                    python=sys.version.split()[0],
                )
            results["data"] = {
                "about": about,
                "rows": len(data.base),
                "dim": data.base.shape[1],
                "queries": len(data.queries),
                "k": K,
                "seed": SEED,
            }
            results["effort"] = dataclasses.asdict(effort) | {"quick": options.quick}
            results["reference"] = REFERENCE
            results["settings"] = SETTINGS
            peers: list[Peer] = [*sql_peers(dsn, schema)]
            for server, its_dsn in servers.items():
                peers += sql_peers(its_dsn, schema, server)
            peers += [library() for library in LIBRARIES]
            run = Run(
                data,
                choose(peers, options.peers),
                effort,
                folder / "arrays",
                database,
                results,
                save,
            )
            run_parts(run, options.parts)
        finally:
            if run is not None:
                run.stop()
            for server, its_dsn in servers.items():
                try:
                    drop_schema(its_dsn, schema)
                except psycopg.Error as error:
                    print(f"schema {schema} is left on {server}, if it was made: {error}")
            database.server.stop()


def write_report(results: dict[str, Any], out: Path) -> None:
    text = report.table(results)
    (out / "table.md").write_text(text + "\n")
    print("\n" + text)
    if not any(peer.get("curve") for peer in results["peers"].values()):
        return
    try:
        report.draw(results, out / "curves.png")
    except ModuleNotFoundError as error:
        print(f"\nno picture: {error}")
    else:
        print(f"\npicture: {out / 'curves.png'}")


def publish(results: dict[str, Any]) -> None:
    """What docs/comparison.md shows, and the figures it is made from."""
    report.PUBLISHED.write_text(json.dumps(results) + "\n")
    report.draw(results, report.PUBLISHED.with_suffix(".png"))
    text = report.replace_between_marks(report.PAGE.read_text(), report.table(results))
    report.PAGE.write_text(text)


if __name__ == "__main__":
    # an end by `kill` leaves nothing behind either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
