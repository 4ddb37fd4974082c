"""Faults without end, and what must hold after each (make torture).

    python -m torture --postgres 18 --seconds 300 --seed 1

Run in tests/.  Three parts, on real servers of the embedded kind or of --bin:

- sweep    every call of the extension that can fail does so, in each operation (sweep.py); on
           embedded servers on x86-64, for which bq is built with fault points
- load     clients write, vacuum, rebuild and search, while backends and servers are killed,
           cancelled, timed out, out of disk (a tmpfs, as root) and fail at points (faults.py)
- copies   a standby is promoted under load, and a base backup is recovered to a point in time

After each fault of a load, every index passes bq_index_check(..., true) and answers as a sort
does, and each client finds just what it committed.  Exits with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
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
from torture import faults, points
from torture.cluster import PATIENCE, Cluster, Hang
from torture.judge import Judge
from torture.load import INDEXES, SETUP, Load
from torture.sweep import sweep

DISK_MB = 1500


class Report:
    """Counts and findings of a run."""

    def __init__(self) -> None:
        self.survived: Counter[str] = Counter()
        self.findings: list[str] = []
        self.hangs = 0
        self.left_out: list[str] = []
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", flush=True)

    def find(self, text: str) -> None:
        self.findings.append(text)
        self.say(f"FOUND {text}")


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


def judge(cluster: Cluster, load: Load, exact: bool = True) -> str | None:
    """What is wrong after a fault, if anything."""
    with contextlib.closing(cluster.connect()) as conn:
        for writer in load.writers:
            complaint = writer.account(conn, exact)
            if complaint:
                return complaint
        return Judge(conn, list(INDEXES)).judge()


def run_load(cluster: Cluster, seed: int, seconds: float, disk: bool, report: Report) -> None:
    """Faults under load for so many seconds; the clients rest while each is judged."""
    chance = random.Random(seed)
    with contextlib.closing(cluster.connect()) as conn:
        conn.execute(SETUP)
    load = Load(cluster.connect, seed, report.say)
    weights = {f: n for f, n in faults.FAULTS.items() if disk or f is not faults.fill_disk}
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            load.go()
            time.sleep(chance.uniform(0.2, 1.2))
            (fault,) = chance.choices(list(weights), list(weights.values()))
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
            report.survived[fault.__name__] += 1
    except Hang as hang:
        report.hangs += 1
        report.find(f"{fault.__name__}: {hang}\n{cluster.log_tail()}")
    finally:
        load.pause(5)
        load.stop()
        report.say(f"load: {dict(load.counts)}")


def run_copies(source: Cluster, archive: Path, seed: int, rounds: int, report: Report) -> None:
    """Promote a standby, and recover a backup to a point in time, under load each."""
    chance = random.Random(seed)
    load = Load(source.connect, seed, report.say)
    with contextlib.closing(source.connect()) as conn:
        for writer in load.writers:  # what an earlier load left is not in this one's history
            conn.execute("UPDATE ledger SET done = 0 WHERE client = %s", (writer.number,))
            conn.execute("DELETE FROM items WHERE id > 0")
    archive_by(source, f"cp %p {archive}/%f")
    try:
        for number in range(rounds):
            for kind in ("promote", "recover"):
                load.go()
                copy = Cluster(source.bin, archive.parent / f"{kind}{number}", port=5433)
                if kind == "promote":
                    copy.copy(source)
                    (copy.data / "standby.signal").touch()
                    copy.settings["primary_conninfo"] = source.dsn
                    copy.settings["hot_standby"] = True
                    copy.start()
                    time.sleep(chance.uniform(0.5, 2))
                    copy.promote()
                else:
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
                busy = load.pause(PATIENCE)
                if busy:
                    report.hangs += 1
                    report.find(f"{kind}: {busy} still at work")
                    return
                with contextlib.closing(copy.connect()) as conn:
                    wait_until_writable(conn)
                complaint = judge(copy, load, exact=False) or judge(source, load)
                copy.remove()
                for text in [complaint] if complaint else load.findings:
                    report.find(f"after {kind}: {text}")
                if report.findings:
                    return
                report.survived[kind] += 1
    except Hang as hang:
        report.hangs += 1
        report.find(str(hang))
    finally:
        load.pause(5)
        load.stop()


def wait_until_writable(conn: psycopg.Connection) -> None:
    end = time.monotonic() + PATIENCE
    while conn.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
        if time.monotonic() > end:
            raise Hang("recovery did not end")
        time.sleep(0.05)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--postgres", type=int, default=18, help="version of embedded servers")
    parser.add_argument("--bin", type=Path, help="programs of another server that has bq")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--build", type=Path, help="keep the servers with fault points here")
    parser.add_argument("--parts", nargs="+", default=["sweep", "load", "copies"])
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if arguments.bin:
            bin_, functions = arguments.bin, []
            report.left_out.append("fault points: they are built for embedded servers")
        else:
            installed = build.installed(arguments.postgres)
            kept = arguments.build or folder
            bin_, functions = points.build(installed.parent, kept / f"pg{arguments.postgres}")
        report.say(f"seed {arguments.seed}, {len(functions)} functions fail, {bin_}")
        with contextlib.ExitStack() as stack:
            disk_folder = folder / "disk"
            disk_folder.mkdir()
            disk = stack.enter_context(small_disk(disk_folder, report))
            cluster = Cluster(
                bin_,
                disk_folder / "primary",
                archive_mode="on",
            )
            stack.callback(cluster.remove)
            cluster.create()
            cluster.give(disk_folder)
            archive = folder / "archive"
            archive.mkdir()
            cluster.give(archive)
            cluster.start()
            archive_by(cluster, "true")
            if "sweep" in arguments.parts and functions:
                with contextlib.closing(cluster.connect()) as conn:
                    conn.execute("CREATE DATABASE sweep")
                dsn = cluster.dsn.replace("dbname=postgres", "dbname=sweep")
                seconds = arguments.seconds * 0.3
                found = sweep(
                    lambda: psycopg.connect(dsn, autocommit=True),
                    arguments.seed,
                    seconds,
                    report.say,
                )
                report.survived["an error at a point"] = sum(found.injected.values())
                for finding in found.findings:
                    report.find(finding)
            if "load" in arguments.parts:
                run_load(cluster, arguments.seed, arguments.seconds * 0.6, disk, report)
            if "copies" in arguments.parts and not report.findings:
                rounds = max(1, int(arguments.seconds / 150))
                run_copies(cluster, archive, arguments.seed, rounds, report)
    for kind, count in report.survived.most_common():
        print(f"{count:8,}  {kind}")
    for text in report.left_out:
        print(f"left out: {text}")
    print(
        f"{sum(report.survived.values()):,} faults survived, {len(report.findings)} findings,"
        f" {report.hangs} hangs; seed {arguments.seed}"
    )
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
