"""Damaged pages of indexes, and everything that reads them (make fuzz-pages).

    python -m fuzz.pages --postgres 18 --seconds 600 --seed 1

Run in tests/.  Indexes of several kinds (specimens.py) are damaged behind the server's back
(damage.py), then queried, inserted into, vacuumed and looked at.  Each statement must end with an
answer or an error, within statement_timeout and bounded memory and disk.  Findings:

- crash     the server process died, or a statement did not end by itself (hang)
- memory    of one backend, or growth of the index or, by reading, of the table
- internal  an error without a code of its own (XX000), which no user can read
- rebuild   REINDEX did not make a good index of it

A finding is shown with its trial, which `--seed N --trial K` repeats.  Exits with 1 if there are
any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg import errors
from shared import Conn
from torture.cluster import Cluster

from fuzz.damage import PAGE, Damage, Vandal, apply
from fuzz.specimens import KINDS, SETUP, Kind
from pybq._server import build

TIMEOUT = 10  # seconds, of statements
PATIENCE = 90  # seconds after which a statement hangs
MEMORY = 300  # MB of a backend
GROWTH = 32 * 2**20  # bytes of an index in one trial

SETTINGS = {
    "autovacuum": False,
    "allow_in_place_tablespaces": True,
    "wal_consistency_checking": "",
    "full_page_writes": False,
    "max_wal_size": "1GB",
    "checkpoint_timeout": "1h",
    "jit": False,
    "log_min_messages": "panic",
    "max_parallel_maintenance_workers": 0,
}


class Finding(Exception):
    """What no damage may do."""


class Specimen:
    """A table, and its index as it was before any damage."""

    def __init__(self, cluster: Cluster, kind: Kind) -> None:
        self.cluster, self.kind = cluster, kind
        self.make()

    def make(self) -> None:
        self.kind.create(lambda: self.cluster.connect())
        with contextlib.closing(self.cluster.connect()) as conn:
            conn.execute("SELECT bq_index_check(%s, true)", (self.kind.index,))
            conn.execute("CHECKPOINT")
            self.content = self._path(conn).read_bytes()
            self.table_size = self.size(conn, self.kind.name)
        self.tablespace = "pg_default"

    def _path(self, conn: Conn) -> Path:
        row = conn.execute("SELECT pg_relation_filepath(%s)", (self.kind.index,)).fetchone()
        assert row is not None
        return Path(self.cluster.data, row[0])

    @staticmethod
    def size(conn: Conn, relation: str) -> int:
        row = conn.execute("SELECT pg_relation_size(%s)", (relation,)).fetchone()
        assert row is not None
        return int(row[0])

    def put(self, damages: list[Damage]) -> None:
        """Let the index have these bytes.

        It moves to another tablespace for that: what is there is in no buffer yet.
        """
        with contextlib.closing(self.cluster.connect()) as conn:
            try:
                self._write(self._path(conn), self.content)
                tablespace = "other" if self.tablespace == "pg_default" else "pg_default"
                conn.execute(
                    cast(Any, f"ALTER INDEX {self.kind.index} SET TABLESPACE {tablespace}")
                )
                self.tablespace = tablespace
            except psycopg.Error:
                self.make()  # buffers that cannot be written, as of a page from the future
                return self.put(damages)
            self._write(self._path(conn), apply(self.content, damages))

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(content)


class Trial:
    """What is done with one damaged index, in a session of its own."""

    def __init__(self, run: Run, number: int, specimen: Specimen, chance: random.Random) -> None:
        self.run, self.number, self.specimen, self.chance = run, number, specimen, chance
        self.kind = specimen.kind
        self.conn = run.cluster.connect(
            statement_timeout=f"{TIMEOUT}s", client_min_messages="error"
        )
        self.pid = self.conn.info.backend_pid
        self.statement = ""

    def do(self, statement: str) -> bool:
        """Run a statement; True if it succeeded."""
        self.statement = statement
        cpu = self._cpu()
        watch = threading.Timer(PATIENCE, self._hang)
        watch.start()
        try:
            self.conn.execute(cast(Any, statement))
            self.run.outcomes["answer"] += 1
            return True
        except errors.QueryCanceled:
            # on a busy machine it may just not have had its turn
            if self._cpu() - cpu < TIMEOUT / 3:
                self.run.outcomes["starved"] += 1
                return False
            self.run.outcomes["timeout"] += 1
            self.run.say(f"trial {self.number} ({self.kind.name}): statement_timeout: {statement}")
        except psycopg.OperationalError as error:
            if self.conn.closed or error.sqlstate is None:
                raise Finding(f"crash: {error}") from None
            if error.sqlstate.startswith("53"):
                raise Finding(f"memory: {error}") from None
            self._note(error)
        except psycopg.Error as error:
            self._note(error)
        finally:
            watch.cancel()
        return False

    def _cpu(self) -> float:
        """Seconds that the session's process has worked."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _note(self, error: psycopg.Error) -> None:
        message = re.sub(r"\d+", "N", error.diag.message_primary or str(error))
        message = re.sub(r'"[^"]*"', '"..."', message)
        self.run.outcomes["error"] += 1
        self.run.messages[f"{error.sqlstate} {message}"] += 1
        if error.sqlstate == "XX000":
            raise Finding(f"internal: {error.diag.message_primary}")

    def _hang(self) -> None:
        self.run.hangs += 1
        self.run.say(f"HANG: {self.statement}\n{self.run.stack(self.pid)}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def check_bounds(self, table_may_grow: bool) -> None:
        status = Path(f"/proc/{self.pid}/status").read_text()
        peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024
        if peak > self.run.memory:
            raise Finding(f"memory: {peak} MB")
        if Specimen.size(self.conn, self.kind.index) > len(self.specimen.content) + GROWTH:
            raise Finding("memory: the index grew")
        table_size = Specimen.size(self.conn, self.kind.name)
        if not table_may_grow and table_size > self.table_size:
            raise Finding("memory: the table grew while it was read")

    # -- what is done ---------------------------------------------------------------------

    def query(self) -> None:
        chance = self.chance
        settings = {
            "bq.probes": chance.choice((0, 0, 1, 5, 65536)),
            "bq.recall": chance.choice((0, 0, 0.8, 1)),
            "bq.iterative_scan": chance.choice(("off", "strict_order", "relaxed_order")),
            "bq.max_scan_tuples": chance.choice((-1, -1, 100)),
            "bq.kernel": chance.choice(("auto", "portable")),
            "work_mem": chance.choice(("'64kB'", "'4MB'")),
            "enable_seqscan": "off",
            "enable_sort": "off",
        }
        self.do("; ".join(f"SET {name} = {value}" for name, value in settings.items()))
        conditions = ["true", "true", "true", "id % 2 = 0", "other IS NULL", "id < 500"]
        conditions += ["other = 3", "label = 'l1'", "other > 2 AND id > 100", "label > 'l'"]
        query = f"SELECT id FROM {self.kind.name} WHERE {chance.choice(conditions)} ORDER BY "
        query += chance.choice(self.kind.distances(chance.randrange(4000)))
        limit = chance.choice((1, 10, 300, None))
        if limit is not None:
            query += f" LIMIT {limit}"
        way = chance.randrange(4)
        if way == 0:
            if self.do(f"BEGIN; DECLARE c CURSOR FOR {query}; FETCH 5 FROM c"):
                self.do("FETCH 500 FROM c; COMMIT")
            self.do("ROLLBACK")
        elif way == 1:
            self.do(f"EXPLAIN (ANALYZE, COSTS OFF) {query}")
        else:
            self.do(query)

    def inspect(self) -> None:
        index = self.kind.index
        table = self.kind.name
        queries = f"ARRAY(SELECT x FROM {table} WHERE x IS NOT NULL ORDER BY id LIMIT 20)"
        together = f"SELECT count(*) FROM bq_search('{index}', {queries}, 15)"
        for statement in (
            *([together] if self.kind.opclass else []),
            f"SELECT * FROM bq_index_info('{index}')",
            f"SELECT bq_index_check('{index}', {self.chance.choice(('true', 'false'))})",
            f"SELECT bq_recall('{index}', 5, 5)",
            f"SELECT bq_index_statistics('{index}') IS NULL",
        ):
            if self.chance.random() < 0.7:
                self.do(statement)

    def insert(self) -> None:
        rows = self.chance.choice((1, 40, 200))
        statement = self.kind.insert(10_000 + self.chance.randrange(1000), rows)
        end = self.chance.choice(("COMMIT", "ROLLBACK"))
        if not self.do(f"BEGIN; {statement}; {end}"):
            self.do("ROLLBACK")

    def vacuum(self) -> None:
        self.do(f"DELETE FROM {self.kind.name} WHERE id >= 10000")
        self.do(f"VACUUM (INDEX_CLEANUP ON) {self.kind.name}")

    def go(self) -> None:
        self.table_size = Specimen.size(self.conn, self.kind.name)
        actions = [self.query, self.query, self.query, self.inspect]
        self.chance.shuffle(actions)
        for action in actions:
            action()
        self.check_bounds(table_may_grow=False)
        actions = [self.insert, self.vacuum, self.query, self.vacuum, self.inspect, self.query]
        self.chance.shuffle(actions)
        for action in actions:
            action()
        self.check_bounds(table_may_grow=True)
        if self.chance.random() < 0.05:
            self.rebuild()

    def rebuild(self) -> None:
        self.do("SET statement_timeout = 0")
        if not self.do(f"REINDEX INDEX {self.kind.index}") or not self.do(
            f"SELECT bq_index_check('{self.kind.index}', true)"
        ):
            raise Finding("rebuild: REINDEX left a damaged index")


class Run:
    """Trials one after the other, and what came of them."""

    def __init__(self, cluster: Cluster, seed: int, memory: int, stop: bool) -> None:
        self.cluster, self.seed, self.memory, self.stop = cluster, seed, memory, stop
        self.start = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.damages: Counter[str] = Counter()
        self.findings: list[str] = []
        self.hangs = 0
        self.trials = 0
        self.specimens = [Specimen(cluster, kind) for kind in KINDS]

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s  {text}", flush=True)

    def stack(self, pid: int) -> str:
        """Where a process is, if there is a debugger."""
        try:
            done = subprocess.run(
                ["gdb", "--batch", "-ex", "bt 25", "-p", str(pid)],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return "no stack: gdb is missing or slow"
        return "\n".join(line for line in done.stdout.splitlines() if line.startswith("#"))

    def go(self, number: int) -> None:
        chance = random.Random(f"{self.seed}/{number}")
        specimen = chance.choice(self.specimens)
        others = [other.content for other in self.specimens if other is not specimen]
        damages = Vandal(chance, specimen.content, others).damage()
        specimen.put(damages)
        trial = Trial(self, number, specimen, chance)
        try:
            trial.go()
        except (Finding, psycopg.OperationalError) as error:
            text = f"trial {number} ({specimen.kind.name}): {error}\n  in {trial.statement}\n"
            text += "".join(f"  {damage}\n" for damage in damages)
            self.findings.append(text)
            self.say(f"FOUND {text}")
        finally:
            with contextlib.suppress(psycopg.Error):
                trial.conn.close()
        self.trials += 1
        self.damages.update(damage.what.split(" ")[0] for damage in damages)
        self.cluster.wait(revive=True)
        with contextlib.closing(self.cluster.connect()) as conn:
            # of rows that no vacuum came to remove
            worn = Specimen.size(conn, specimen.kind.name) > 2 * specimen.table_size
        if worn:
            specimen.make()

    def report(self) -> None:
        seconds = time.monotonic() - self.start
        statements = sum(self.outcomes.values())
        for message, count in self.messages.most_common():
            print(f"{count:8,}  {message}")
        print("damage: " + ", ".join(f"{n:,} {what}" for what, n in self.damages.most_common()))
        print(
            f"{self.trials:,} damaged indexes, {statements:,} statements"
            f" ({statements / seconds:.0f} per second): "
            + ", ".join(f"{n:,} {what}" for what, n in self.outcomes.most_common())
        )
        print(f"{len(self.findings)} findings, {self.hangs} hangs; seed {self.seed}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--postgres", type=int, default=18, help="version of the embedded server")
    parser.add_argument("--bin", type=Path, help="programs of another server that has bq")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--trial", type=int, help="repeat this one")
    parser.add_argument("--memory", type=int, default=MEMORY, help="MB that a backend may take")
    parser.add_argument("--stop", action="store_true", help="at the first finding")
    arguments = parser.parse_args()
    bin_ = arguments.bin.absolute() if arguments.bin else build.installed(arguments.postgres)
    with tempfile.TemporaryDirectory(prefix="fuzz-pages-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        cluster = Cluster(bin_, folder / "server", **SETTINGS)
        cluster.create()
        # 18 has them unless told otherwise; they would hide all damage
        cluster.run("pg_checksums", "--disable", "-D", cluster.data, check=False)
        cluster.start()
        try:
            with contextlib.closing(cluster.connect()) as conn:
                conn.execute(SETUP)
                conn.execute("CREATE TABLESPACE other LOCATION ''")
            run = Run(cluster, arguments.seed, arguments.memory, arguments.stop)
            pages = sum(len(specimen.content) // PAGE for specimen in run.specimens)
            run.say(f"seed {run.seed}, {len(run.specimens)} indexes of {pages} pages, {bin_}")
            if arguments.trial is not None:
                run.go(arguments.trial)
            end = time.monotonic() + arguments.seconds
            while arguments.trial is None and time.monotonic() < end:
                run.go(run.trials)
                if run.findings and run.stop:
                    break
            run.report()
        finally:
            cluster.remove()
    return 1 if run.findings or run.hangs else 0


if __name__ == "__main__":
    sys.exit(main())
