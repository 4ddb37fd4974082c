"""Faults without end, and what must hold after each (make torture); load without any (make stress).

    python -m torture --postgres 18 --seconds 300 --seed 1
    python -m torture --bin /path/to/postgresql/bin --parts load

Run in tests/.  On real servers, of the embedded kind or of --bin, where there may be no pgvector:

- sweep    every call of the extension that can fail does so, in each operation (sweep.py); with
           pgvector, and where bq can be built with fault points: for x86-64, into a copy of the
           server with its libraries
- meet     one session stops at a place in the extension, another works meanwhile: every place
           in turn (interleave.py); where bq can be built with fault points
- load     clients write, vacuum, rebuild and search, while backends and servers are killed,
           cancelled, timed out, out of disk (a tmpfs, as root) and fail at points (faults.py)
- copies   a standby is promoted under load, and a base backup is recovered to a point in time
- stress   nothing is made to fail: no deadlock, no autovacuum that never ends, no index that grows
           (stress.py)

After each fault of a load, every index passes bq_index_check(..., true) and answers as a sort
does, and each client finds just what it committed.  Exits with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pybq._server import build
from torture import faults, points, stress
from torture.cluster import PATIENCE, Cluster, Hang, steps
from torture.interleave import interleave
from torture.judge import Judge
from torture.load import CODES, INDEXES, REBUILT, VECTORS, Load, setup
from torture.sweep import sweep

DISK_MB = 1500  # which faults fill
COPIED_DISK_MB = 8000  # and which nothing fills: WAL stays until it is archived

HAS_VECTOR = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"


class Report:
    """Counts and findings of a run."""

    def __init__(self) -> None:
        self.survived: Counter[str] = Counter()
        self.errors: dict[str, Counter[str]] = {}  # that clients met, by kind of fault
        self.findings: list[str] = []
        self.hangs = 0
        self.left_out: list[str] = []
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", flush=True)

    def find(self, text: str) -> None:
        self.findings.append(text)
        self.say(f"FOUND {text}")

    def survive(self, kind: str, errors: Counter[str]) -> None:
        self.survived[kind] += 1
        self.errors.setdefault(kind, Counter()).update(errors)

    def table(self) -> str:
        """Faults by kind, and errors that clients met of each."""
        lines = ["  faults   errors"]
        for kind, count in self.survived.most_common():
            errors = self.errors.get(kind, Counter())
            names = ", ".join(f"{name} {n:,}" for name, n in errors.most_common(3))
            lines.append(f"{count:8,} {errors.total() or '':>8}  {kind:20} {names}".rstrip())
        return "\n".join(lines)


@contextlib.contextmanager
def small_disk(folder: Path, report: Report) -> Iterator[bool]:
    """A file system of DISK_MB at `folder`; False if there can be none."""
    command = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "tmpfs", str(folder))
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        report.left_out.append("a full disk: no tmpfs could be mounted, which needs root")
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(("umount", "-l", str(folder)), check=True)


def make_room(folder: Path) -> None:
    """No full disk from here on, which would end a server that is being copied."""
    command = ("mount", "-o", f"remount,size={COPIED_DISK_MB}m", str(folder))
    subprocess.run(command, check=True)


def judge(cluster: Cluster, load: Load, exact: bool = True) -> str | None:
    """What is wrong after a fault, if anything."""
    with contextlib.closing(cluster.connect(statement_timeout=PATIENCE * 5000)) as conn:
        for writer in load.writers:
            complaint = writer.account(conn, exact)
            if complaint:
                return complaint
        return Judge(conn, list(INDEXES)).judge()


def run_load(
    cluster: Cluster, load: Load, seed: int, seconds: float, disk: bool, report: Report
) -> None:
    """Faults under load for so many seconds; the clients rest while each is judged."""
    chance = random.Random(seed)
    weights = {f: n for f, n in faults.FAULTS.items() if disk or f is not faults.fill_disk}
    end = time.monotonic() + seconds
    fault = next(iter(weights))
    try:
        while time.monotonic() < end:
            watch()
            load.go()
            time.sleep(chance.uniform(0.1, 0.8))
            (fault,) = chance.choices(list(weights), list(weights.values()))
            load.errors.clear()
            try:
                fault(cluster, chance)
            except NotImplementedError:
                del weights[fault]  # no fault points in this build
                continue
            except psycopg.OperationalError as error:
                # a full disk or an earlier kill can end the session that makes the fault
                report.say(f"{fault.__name__}: {error}")
                cluster.wait()
            busy = load.pause(PATIENCE)
            if busy:
                report.hangs += 1
                report.find(f"{fault.__name__}: {busy} still at work after {PATIENCE} s")
                report.say(activity(cluster))
                return
            cluster.wait(revive=True)
            complaint = judge(cluster, load)
            for text in [complaint] if complaint else load.findings:
                report.find(f"after {fault.__name__}: {text}")
            if report.findings:
                return
            report.survive(fault.__name__, load.errors)
            if report.survived.total() % 25 == 0:
                report.say(f"{report.survived.total()} faults survived")
    except Hang as hang:
        report.hangs += 1
        report.find(f"{fault.__name__}: {hang}\n{cluster.log_tail()}")
    except RuntimeError as error:  # of a program of the server
        report.find(f"{fault.__name__}: {error}")
    finally:
        load.pause(5)


def run_copies(
    source: Cluster, load: Load, archive: Path, seed: int, seconds: float, report: Report
) -> None:
    """Promote a standby, and recover a backup to a point in time, under load each."""
    chance = random.Random(seed)
    archive_by(source, f"cp %p {archive}/%f")
    end = time.monotonic() + seconds
    try:
        for number in itertools.count():
            if number and time.monotonic() > end:
                return
            for kind in (promote, recover):
                watch()
                load.errors.clear()
                load.go()
                name = kind.__name__
                copy = Cluster(source.bin, archive.parent / f"{name}{number}", port=5433)
                kind(source, copy, archive, chance)
                busy = load.pause(PATIENCE)
                if busy:
                    report.hangs += 1
                    report.find(f"{name}: {busy} still at work after {PATIENCE} s")
                    report.say(activity(source))
                    return
                with contextlib.closing(copy.connect()) as conn:
                    wait_until_writable(conn)
                complaint = judge(copy, load, exact=False) or judge(source, load)
                copy.remove()
                for file in archive.iterdir():
                    file.unlink()
                for text in [complaint] if complaint else load.findings:
                    report.find(f"after {name}: {text}")
                if report.findings:
                    return
                report.survive(name, load.errors)
    except Hang as hang:
        report.hangs += 1
        report.find(f"{hang}\n{source.log_tail()}")
    except RuntimeError as error:
        report.find(f"{error}\n{source.log_tail()}")
    finally:
        load.pause(5)


def promote(source: Cluster, copy: Cluster, archive: Path, chance: random.Random) -> None:
    copy.copy(source)
    (copy.data / "standby.signal").touch()
    copy.settings["primary_conninfo"] = source.dsn
    copy.settings["hot_standby"] = True
    copy.start()
    time.sleep(chance.uniform(0.5, 2))
    copy.promote()


def recover(source: Cluster, copy: Cluster, archive: Path, chance: random.Random) -> None:
    copy.copy(source)
    with contextlib.closing(source.connect()) as conn:
        time.sleep(chance.uniform(0.5, 2))
        (when,) = conn.execute("SELECT now()::text").fetchone() or ("",)
        time.sleep(chance.uniform(0.1, 0.5))
        conn.execute("SELECT pg_switch_wal()")
        time.sleep(1.5)
    (copy.data / "recovery.signal").touch()
    copy.settings["restore_command"] = f"cp {archive}/%f %p"
    copy.settings["recovery_target_time"] = when
    copy.settings["recovery_target_action"] = "promote"
    copy.start()


def wait_until_writable(conn: psycopg.Connection) -> None:
    for _ in steps():
        if conn.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
            return
    raise Hang("recovery did not end")


def archive_by(cluster: Cluster, command: str) -> None:
    with contextlib.closing(cluster.connect()) as conn:
        conn.execute(f"ALTER SYSTEM SET archive_command = '{command}'")
        conn.execute("SELECT pg_reload_conf()")


def activity(cluster: Cluster) -> str:
    with contextlib.closing(cluster.connect()) as conn:
        rows = conn.execute(
            "SELECT pid, backend_type, state, wait_event_type, wait_event, query"
            " FROM pg_stat_activity"
        ).fetchall()
    return "\n".join(str(row) for row in rows)


def watch() -> None:
    """Whatever comes next, also of this program, ends in time, or says where it hangs."""
    faulthandler.dump_traceback_later(10 * PATIENCE, exit=True)


# of the time, where several parts run
SHARES = {"sweep": 0.25, "meet": 0.1, "load": 0.5, "copies": 0.15, "stress": 1.0}


def provide(arguments: argparse.Namespace, folder: Path, report: Report) -> tuple[Path, list[str]]:
    """Programs of a server that has bq, and the functions that can be made to fail."""
    kept = (arguments.build or folder).absolute()
    if arguments.bin is None:
        bin_ = build.installed(arguments.postgres)
        return points.build(bin_, bin_.parents[2], kept / f"pg{arguments.postgres}")
    bin_ = arguments.bin.absolute()
    root = bin_.parents[4] if len(bin_.parents) > 4 else Path("/")
    if root == Path("/"):
        report.left_out.append(f"fault points: {bin_} is no server that can be copied")
        return bin_, []
    return points.build(bin_, root, kept / root.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--postgres", type=int, default=18, help="version of embedded servers")
    parser.add_argument(
        "--bin", type=Path, help="programs of another server: one of .ci/debian-server, or with bq"
    )
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--build", type=Path, help="keep the servers with fault points here")
    parser.add_argument(
        "--parts", nargs="+", default=["sweep", "meet", "load", "copies"], choices=list(SHARES)
    )
    arguments = parser.parse_args()
    report = Report()
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # sessions that are gone are no news
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        bin_, functions = provide(arguments, folder, report)
        report.say(f"seed {arguments.seed}, {len(functions)} functions fail, {bin_}")
        with contextlib.ExitStack() as stack:
            disk_folder = folder / "disk"
            disk_folder.mkdir()
            disk = stack.enter_context(small_disk(disk_folder, report))
            settings = stress.SETTINGS if "stress" in arguments.parts else {}
            cluster = Cluster(bin_, disk_folder / "primary", archive_mode="on", **settings)
            stack.callback(cluster.remove)
            cluster.create()
            cluster.give(disk_folder)
            archive = folder / "archive"
            archive.mkdir()
            cluster.give(archive)
            cluster.start()
            archive_by(cluster, "true")
            run_parts(arguments, cluster, archive, disk, bool(functions), report)
    faulthandler.cancel_dump_traceback_later()
    print(report.table())
    for text in report.left_out:
        print(f"left out: {text}")
    print(
        f"{report.survived.total():,} faults survived, {len(report.findings)} findings,"
        f" {report.hangs} hangs; seed {arguments.seed}"
    )
    return 1 if report.findings else 0


def run_parts(
    arguments: argparse.Namespace,
    cluster: Cluster,
    archive: Path,
    disk: bool,
    can_fail: bool,
    report: Report,
) -> None:
    with contextlib.closing(cluster.connect()) as conn:
        kind = CODES if conn.execute(HAS_VECTOR).fetchone() is None else VECTORS
        if kind is CODES:
            report.left_out.append("vectors: the server has no pgvector")
        for name in ("sweep", "meet"):
            conn.execute(f"CREATE DATABASE {name}")
        conn.execute(setup(kind))
    seed, parts = arguments.seed, list(arguments.parts)
    if "sweep" in parts and not (can_fail and kind is VECTORS):
        parts.remove("sweep")
        report.left_out.append("the sweep: it needs fault points, and pgvector")
    if "meet" in parts and not can_fail:
        parts.remove("meet")
        report.left_out.append("the meetings: they need fault points")
    unit = arguments.seconds / max(sum(SHARES[part] for part in parts), 0.01)
    if "sweep" in parts:
        dsn = cluster.dsn.replace("dbname=postgres", "dbname=sweep")
        found = sweep(
            lambda: psycopg.connect(dsn, autocommit=True),
            seed,
            unit * SHARES["sweep"],
            report.say,
        )
        report.survived["an error at a point"] = sum(found.injected.values())
        for finding in found.findings:
            report.find(finding)
    if "meet" in parts:
        dsn = cluster.dsn.replace("dbname=postgres", "dbname=meet")
        met = interleave(
            lambda: psycopg.connect(dsn, autocommit=True), seed, unit * SHARES["meet"], report.say
        )
        report.survived["a stop at a place"] = met.places.total()
        for finding in met.findings:
            report.find(finding)
    # one load for all parts: what a client did in one of them is its history in the next
    rebuilt = stress.REBUILT if "stress" in parts else REBUILT
    load = Load(cluster.connect, kind, seed, rebuilt)
    try:
        if "load" in parts:
            run_load(cluster, load, seed, unit * SHARES["load"], disk, report)
        if "copies" in parts and not report.findings:
            if disk:
                make_room(cluster.data.parents[1])
            run_copies(cluster, load, archive, seed, unit * SHARES["copies"], report)
        if "stress" in parts and not report.findings:
            stress.run(cluster, load, unit * SHARES["stress"], report.say, report.find)
    finally:
        load.stop()
        report.say(f"load: {dict(load.counts)}")


if __name__ == "__main__":
    sys.exit(main())
