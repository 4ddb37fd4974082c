"""One table that grows to ten million rows on one machine: what it costs at each size.

    python benchmarks/scale.py FOLDER --out /tmp/scale
    python benchmarks/scale.py FOLDER --out /tmp/scale --rows 300000 --phases load build query
    python benchmarks/scale.py --report --out /tmp/scale

FOLDER holds wordnet.npz; rows and queries are made of it chunk by chunk (sets.Stream):
halfvec(384), a bigint as key, and a category of 100 to filter by.  The exact answers are kept while
chunks are made, so nothing is read twice.  The server has PostgreSQL's defaults (WAL, fsync) but
for SETTINGS below; autovacuum is off, and VACUUM (ANALYZE) runs where it would.

Each result is written to results.json in --out as soon as it is there, and what is there is not
done again: a run that was cut goes on.  The table is measured at .1, .3, 1, 3 and 10 million rows;
at each size, up to --rows:

- load          binary COPY, a transaction for each 100,000 rows, without an index; VACUUM (ANALYZE)
- build         the index is dropped and made anew: seconds, bytes, peak memory of backend and
                workers (pages of their own, and shared ones but shared buffers)
- query         ten nearest, warm: median and 95th percentile of a prepared statement beyond
                SELECT 1, recall, lists and codes, at bq.recall .95, .98, .99 and at the least one
                that finds .95
- hnsw          at a million rows (or at the last size, if smaller): pgvector's HNSW made beside it,
                m 16, ef_construction 64; both in turn, each at its fastest setting of a recall
- filter        the query WHERE category = $2, 1 % of the rows
- limited       shared buffers of a quarter of table and index, and no page cache (debug_io_direct):
                each query once, after 3,000 others

and at the last size only, as these change the table:

- regroup       another table, of three million of the rows, whose index was made while it was
                empty: VACUUM splits its one list beside two clients that insert single rows; how
                long these waited
- insert        rows per second into the full index, by COPY and one by one
- delete        a tenth of the rows is deleted and vacuumed; recall after it
- reindex       REINDEX of what is left

After them the table does not grow any more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import shutil
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from common import (
    EF_SEARCH,
    Array,
    Conn,
    Statement,
    compare,
    copy_bytes,
    describe,
    paired_ratio,
    show_only,
    value,
)
from sets import QUERIES, SEED, K, Stream

import pybq

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
HNSW_SIZE = 1_000_000
PHASES = (
    "load",
    "build",
    "query",
    "hnsw",
    "filter",
    "limited",
    "regroup",
    "insert",
    "delete",
    "reindex",
)
LAST_PHASES = ("regroup", "insert", "delete", "reindex")
RECALLS = (0.95, 0.98, 0.99)
LOWER = (0.8, 0.85, 0.88, 0.9, 0.92, 0.93, 0.94)  # where a query finds more than it was asked for
MEMORY = "3GB"
SETTINGS: dict[str, str | int | bool] = {
    "shared_buffers": "4GB",
    "maintenance_work_mem": MEMORY,
    "max_wal_size": "4GB",
    "max_parallel_maintenance_workers": 1,  # and the leader: both cores
    "max_parallel_workers_per_gather": 0,
    "plan_cache_mode": "force_generic_plan",
    "jit": False,
    "autovacuum": False,
}
# so that nearest rows are still known when a tenth was deleted
KEPT = 30
CATEGORIES = 100
FILTER_QUERIES = 100
EXPLAINED = 30
REGROUPED = 3_000_000
WRITERS = 2
INSERT_SECONDS = 20

# measured; for what is said before a run
TABLE_BYTES_PER_ROW = 911
INDEX_BYTES_PER_ROW = 130
HNSW_BYTES_PER_ROW = 1170
WAL_BYTES = 5 << 30
MINUTES_PER_MILLION = 2.5

COLUMNS = f"id bigint, category int, embedding halfvec({Stream.DIM})"
INDEX = "ON {0} USING bq (embedding halfvec_cosine_ops, category)"
NEAREST = "SELECT id FROM items {} ORDER BY embedding <=> $1 LIMIT 10"
KNOBS = {"hnsw": "hnsw.ef_search", "bq": "bq.recall"}


# -- results -------------------------------------------------------------------------------------


class Results:
    """What was measured so far, by size and phase, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def has(self, rows: int, phase: str) -> bool:
        return f"{rows} {phase}" in self.kept

    def get(self, rows: int, phase: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kept.get(f"{rows} {phase}", {})
        return found

    def put(self, rows: int, phase: str, result: dict[str, Any]) -> None:
        self.kept[f"{rows} {phase}"] = result
        write_whole(self.path, (json.dumps(self.kept, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file, so that whoever reads it finds the old one or the new one."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


class Truth:
    """The nearest rows to each query among the rows so far, and among those of a category."""

    def __init__(self, stream: Stream, path: Path) -> None:
        self.path = path
        self.queries = stream.queries.astype(np.float32)
        self.rows = 0
        self.flat = [np.full((QUERIES, KEPT), -np.inf), np.full((QUERIES, KEPT), -1)]
        self.filtered = [np.full((FILTER_QUERIES, K), -np.inf), np.full((FILTER_QUERIES, K), -1)]
        if path.exists():
            with np.load(path) as kept:
                self.rows = int(kept["rows"])
                self.flat = [kept["scores"], kept["ids"]]
                self.filtered = [kept["filtered_scores"], kept["filtered_ids"]]

    def add(self, rows: Array, categories: Array) -> None:
        vectors = rows.astype(np.float32)  # what halfvec stores
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = self.queries @ vectors.T
        ids = np.arange(self.rows, self.rows + len(rows))
        for q in range(QUERIES):
            keep_best(self.flat, q, scores[q], ids)
        for q in range(FILTER_QUERIES):
            own = categories == q % CATEGORIES
            keep_best(self.filtered, q, scores[q, own], ids[own])
        self.rows += len(rows)

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part.npz")
        np.savez(
            part,
            rows=self.rows,
            scores=self.flat[0],
            ids=self.flat[1],
            filtered_scores=self.filtered[0],
            filtered_ids=self.filtered[1],
        )
        part.replace(path)

    def recall(
        self, found: list[list[int]], deleted: Callable[[Array], Array] | None = None
    ) -> float:
        """Share of the ten nearest that was found, of those left if some were deleted."""
        hits = 0
        for q, ids in enumerate(found):
            nearest = self.flat[1][q]
            if deleted is not None:
                nearest = nearest[~deleted(nearest)]
            hits += len(set(ids) & set(nearest[:K].tolist()))
        return hits / (K * len(found))

    def recall_filtered(self, found: list[list[int]]) -> float:
        pairs = zip(found, self.filtered[1], strict=True)
        return sum(len(set(ids) & set(own.tolist())) for ids, own in pairs) / (K * len(found))


def keep_best(best: list[Array], q: int, scores: Array, ids: Array) -> None:
    """Merge rows into the best of query q, which are in order."""
    near = scores > best[0][q, -1]
    scores = np.concatenate([best[0][q], scores[near]])
    order = np.argsort(-scores, kind="stable")[: best[0].shape[1]]
    best[0][q] = scores[order]
    best[1][q] = np.concatenate([best[1][q], ids[near]])[order]


def categories_of(chunk: int) -> Array:
    rng = np.random.default_rng((SEED, chunk, 1))
    return rng.integers(0, CATEGORIES, Stream.CHUNK).astype(np.int32)


# -- memory --------------------------------------------------------------------------------------


def memory_of(pids: list[int]) -> int:
    """Bytes of processes: their own pages, and memory that they share, but shared buffers."""
    total = 0
    segments = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it may have ended
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024
            segments |= set(re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text()))
    for segment in segments:
        with contextlib.suppress(OSError):
            total += os.stat(segment).st_blocks * 512
    return total


class PeakMemory:
    """The most that a backend and its workers have at a time, while the block runs."""

    def __init__(self, dsn: str, pid: int) -> None:
        self.dsn, self.pid, self.peak = dsn, pid, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        query = "SELECT pid FROM pg_stat_activity WHERE leader_pid = %s AND pid <> leader_pid"
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while not self._stop.wait(0.1):
                workers = [pid for (pid,) in conn.execute(query, (self.pid,))]
                self.peak = max(self.peak, memory_of([self.pid, *workers]))


# -- phases --------------------------------------------------------------------------------------


class Run:
    def __init__(self, folder: Path, out: Path) -> None:
        self.out = out
        self.results = Results(out / "results.json")
        self.stream = Stream(folder, out / "near.npy")
        # halves, big endian, behind dimension and zero
        header = struct.pack("!HH", Stream.DIM, 0)
        self.parameters, self.warming = (
            [[header + query.astype(">f2").tobytes()] for query in queries]
            for queries in (self.stream.queries, self.stream.warming)
        )
        self.kept = contextlib.ExitStack()  # the server
        self.server: pybq.Server | None = None
        self.conn: Conn

    def truth(self, rows: int) -> Truth:
        return Truth(self.stream, self.out / f"truth-{rows}.npz")

    def start(self, **settings: Any) -> None:
        self.stop()
        self.server = self.kept.enter_context(
            pybq.serve(self.out / "data", settings=SETTINGS | settings)
        )
        self.conn = self.connect()

    def connect(self) -> Conn:
        assert self.server is not None
        conn: Conn = psycopg.connect(self.server.dsn, autocommit=True)
        conn.prepare_threshold = None
        return self.kept.enter_context(conn)

    def stop(self) -> None:
        if self.server is not None:
            self.conn.execute("CHECKPOINT")  # the server's own is given a minute
        self.kept.close()
        self.server = None

    def load(self, rows: int) -> dict[str, Any]:
        """COPY while the next chunk is made."""
        self.conn.execute(f"CREATE TABLE IF NOT EXISTS items ({COLUMNS})".encode())
        self.conn.execute("DROP INDEX IF EXISTS items_near")
        there = value(self.conn, "SELECT coalesce(max(id) + 1, 0) FROM items")
        path = self.out / "truth.npz"
        truth = Truth(self.stream, path)
        if not truth.rows <= there <= rows:
            raise SystemExit(
                f"the table has {there} rows, {truth.rows} of them seen: remove {self.out}"
            )
        chunks: queue.Queue[tuple[int, Array, Array] | None] = queue.Queue(1)

        def make() -> None:
            for chunk in range(truth.rows // Stream.CHUNK, rows // Stream.CHUNK):
                chunks.put((chunk, self.stream.rows(chunk), categories_of(chunk)))
            chunks.put(None)

        begin = time.perf_counter()
        seconds = 0.0
        copied = 0
        maker = threading.Thread(target=make, daemon=True)
        maker.start()
        while (made := chunks.get()) is not None:
            chunk, vectors, categories = made
            first = chunk * Stream.CHUNK
            if first >= there:
                start = time.perf_counter()
                copy(self.conn, "items", first, categories, vectors)
                seconds += time.perf_counter() - start
                copied += len(vectors)
            truth.add(vectors, categories)
            truth.save(path)
        maker.join()
        truth.save(self.out / f"truth-{rows}.npz")
        whole = time.perf_counter() - begin
        vacuum = self.timed("VACUUM (ANALYZE) items")
        return {
            "rows": copied,
            "copy seconds": seconds,
            "seconds": whole,
            "vacuum seconds": vacuum,
            "table bytes": value(self.conn, "SELECT pg_table_size('items')"),
        }

    def build(self, rows: int) -> dict[str, Any]:
        self.conn.execute("DROP INDEX IF EXISTS items_near")
        self.conn.execute("CHECKPOINT")
        return self.build_by(f"CREATE INDEX items_near {INDEX.format('items')}")

    def build_by(self, command: str) -> dict[str, Any]:
        assert self.server is not None
        with PeakMemory(self.server.dsn, self.conn.info.backend_pid) as memory:
            seconds = self.timed(command)
        limit = value(self.conn, "SELECT pg_size_bytes(current_setting('maintenance_work_mem'))")
        info = self.conn.execute(
            "SELECT lists, max_rows FROM bq_index_info('items_near')"
        ).fetchone()
        assert info is not None
        return {
            "seconds": seconds,
            "peak bytes": memory.peak,
            "maintenance_work_mem": limit,
            "index bytes": value(self.conn, "SELECT pg_relation_size('items_near')"),
            "lists": info[0],
            "longest list": info[1],
        }

    def timed(self, command: str) -> float:
        start = time.perf_counter()
        self.conn.execute(command.encode())
        return time.perf_counter() - start

    def query(self, rows: int) -> dict[str, Any]:
        return self.ask("", self.parameters, self.truth(rows).recall)

    def hnsw(self, rows: int) -> dict[str, Any]:
        """The flat query by either index, the other one hidden from the planner."""
        self.conn.execute("DROP INDEX IF EXISTS items_hnsw")
        seconds = self.timed(
            "CREATE INDEX items_hnsw ON items USING hnsw (embedding halfvec_cosine_ops)"
        )
        size = value(self.conn, "SELECT pg_relation_size('items_hnsw')")
        print(f"  hnsw built: {seconds:.0f} s, {size / 1e6:,.0f} MB", flush=True)
        try:
            systems = Beside(self.connect(), self.parameters)
            recall = self.truth(rows).recall
            for slowest in (("hnsw", EF_SEARCH[-1]), ("bq", 0.998)):
                systems.point(slowest, recall)  # pages come into memory
            curve = [systems.point(setting, recall) for setting in systems.settings()]
            compared = {str(wanted): compare(systems, curve, wanted) for wanted in (0.95, 0.99)}
        finally:
            self.conn.execute("DROP INDEX items_hnsw")
            show_only(self.conn, "near")
        ratios = {wanted: paired_ratio(c, "hnsw", "bq") for wanted, c in compared.items()}
        return {"seconds": seconds, "index bytes": size, "hnsw / bq": ratios, "curve": curve}

    def filter(self, rows: int) -> dict[str, Any]:
        parameters = [
            [*self.parameters[q], struct.pack("!i", q % CATEGORIES)] for q in range(FILTER_QUERIES)
        ]
        return self.ask("WHERE category = $2", parameters, self.truth(rows).recall_filtered, ())

    def ask(
        self,
        condition: str,
        parameters: list[list[bytes]],
        recall: Callable[[list[list[int]]], float],
        lower: tuple[float, ...] = LOWER,
    ) -> dict[str, Any]:
        """Each promise, and the least one that finds .95."""
        conn = self.connect()
        conn.execute("SET enable_seqscan = off")
        floor = Statement(conn, "floor", "SELECT 1", [[]])
        near = Statement(conn, "near", NEAREST.format(condition), parameters)
        n = len(parameters)
        if "items_near" not in str(self.explain(conn, parameters[0], analyze=False)):
            raise RuntimeError("the plan does not use the index")

        def measure(wanted: float) -> dict[str, Any]:
            conn.execute(f"SET bq.recall = {wanted}".encode())
            found = [near(q) for q in range(n)]
            times, none = [], []
            for q in range(n):
                for statement, into in ((floor, none), (near, times)):
                    start = time.perf_counter()
                    statement(q)
                    into.append(time.perf_counter() - start)
            least = statistics.median(none)
            plans = [self.explain(conn, p) for p in parameters[:EXPLAINED]]
            return {
                "recall": recall(found),
                "ms": 1e3 * (statistics.median(times) - least),
                "p95 ms": 1e3 * (statistics.quantiles(times, n=20)[-1] - least),
                **{
                    name: statistics.mean(count(plan, label) for plan in plans)
                    for name, label in (
                        ("lists", "Lists Read"),
                        ("codes", "Codes Compared"),
                        ("vectors", "Vectors Compared"),
                    )
                },
            }

        measure(RECALLS[-1])  # pages come into memory
        asked = {str(wanted): measure(wanted) for wanted in RECALLS}
        found = dict(asked)
        for wanted in reversed(lower):
            if min(f["recall"] for f in found.values()) < 0.95:
                break
            found[str(wanted)] = measure(wanted)
        enough = [name for name, f in found.items() if f["recall"] >= 0.95]
        if enough:
            least = min(enough, key=float)
            asked["finds .95"] = {"asked": float(least), **found[least]}
        return asked

    def explain(self, conn: Conn, parameters: list[bytes], analyze: bool = True) -> Any:
        """The plan of the statement, executed, as JSON."""
        values = np.frombuffer(parameters[0][4:], ">f2")
        texts = [
            f"'[{','.join(map(str, values))}]'",
            *(str(*struct.unpack("!i", p)) for p in parameters[1:]),
        ]
        options = "ANALYZE, TIMING OFF, FORMAT JSON" if analyze else "FORMAT JSON"
        return value(conn, f"EXPLAIN ({options}) EXECUTE near ({', '.join(texts)})")

    def limited(self, rows: int) -> dict[str, Any]:
        quarter = value(
            self.conn, "SELECT (pg_table_size('items') + pg_relation_size('items_near')) / 4"
        )
        buffers = max(16, quarter >> 20)
        self.start(shared_buffers=f"{buffers}MB", debug_io_direct="data")
        conn = self.conn
        conn.execute("SET enable_seqscan = off")
        floor = Statement(conn, "floor", "SELECT 1", [[]]).seconds(100)
        asked: dict[str, Any] = {"shared_buffers bytes": buffers << 20}
        truth = self.truth(rows)
        warming = Statement(conn, "warming", NEAREST.format(""), self.warming)
        near = Statement(conn, "near", NEAREST.format(""), self.parameters)
        for wanted in RECALLS:
            conn.execute(f"SET bq.recall = {wanted}".encode())
            for q in range(len(self.warming) if wanted == RECALLS[0] else QUERIES):
                warming(q)
            before = pages_read(conn)
            times, found = [], []
            # no query twice: its rows would be in memory
            own = range(RECALLS.index(wanted), QUERIES, len(RECALLS))
            for q in own:
                start = time.perf_counter()
                found.append(near(q))
                times.append(time.perf_counter() - start)
            nearest = [truth.flat[1][q, :K].tolist() for q in own]
            hits = sum(len(set(a) & set(b)) for a, b in zip(found, nearest, strict=True))
            asked[str(wanted)] = {
                "recall": hits / (K * len(own)),
                "ms": 1e3 * (statistics.median(times) - floor),
                "p95 ms": 1e3 * (statistics.quantiles(times, n=20)[-1] - floor),
                "pages read": (pages_read(conn) - before) / len(own),
            }
        self.start()
        return asked

    def regroup(self, rows: int) -> dict[str, Any]:
        """One list of all rows, split beside writers."""
        rows = min(rows, REGROUPED)
        conn = self.conn
        conn.execute("DROP TABLE IF EXISTS grown")
        conn.execute(f"CREATE TABLE grown ({COLUMNS})".encode())
        conn.execute(f"CREATE INDEX grown_near {INDEX.format('grown')}".encode())
        fill = self.timed(f"INSERT INTO grown SELECT * FROM items WHERE id < {rows}")
        conn.execute("CHECKPOINT")
        before = value(conn, "SELECT lists FROM bq_index_info('grown_near')")
        vectors = self.stream.rows(1_000_000)  # a seed that no load reaches
        writers = [Writer(self.connect(), "grown", (w + 2) << 40, vectors) for w in range(WRITERS)]
        try:
            for writer in writers:
                writer.start()
            time.sleep(15)
            calm = [writer.take() for writer in writers]
            seconds = self.timed("VACUUM grown")
            busy = [writer.take() for writer in writers]
        finally:
            for writer in writers:
                writer.end()
        inserted = sum(len(writer.times) for writer in writers)
        lost = rows + inserted - value(conn, "SELECT count(*) FROM grown")
        checked = self.timed("SELECT bq_index_check('grown_near', true)")
        result = {
            "rows": rows,
            "fill seconds": fill,
            "lists before": before,
            "lists": value(conn, "SELECT lists FROM bq_index_info('grown_near')"),
            "vacuum seconds": seconds,
            "inserts a second before": sum(map(len, calm)) / 15,
            "inserts a second meanwhile": sum(map(len, busy)) / seconds,
            "longest before, ms": 1e3 * max(map(max, calm)),
            "longest meanwhile, ms": 1e3 * max(map(max, busy)),
            "lost": lost,
            "check seconds": checked,
        }
        conn.execute("DROP TABLE grown")
        return result

    def insert(self, rows: int) -> dict[str, Any]:
        chunk = rows // Stream.CHUNK
        vectors, categories = self.stream.rows(chunk), categories_of(chunk)
        half = len(vectors) // 2
        # of a run that was cut
        self.conn.execute(f"DELETE FROM items WHERE id >= {rows}".encode())
        start = time.perf_counter()
        copy(self.conn, "items", rows, categories[:half], vectors[:half])
        seconds = time.perf_counter() - start
        writer = Writer(self.connect(), "items", 1 << 40, vectors[half:])
        writer.start()
        time.sleep(INSERT_SECONDS)
        writer.end()
        return {
            "rows a second by COPY": half / seconds,
            "rows a second, one by one": len(writer.times) / sum(writer.times),
            "p99 ms": 1e3 * statistics.quantiles(writer.times, n=100)[-1],
        }

    def delete(self, rows: int) -> dict[str, Any]:
        self.conn.execute(f"DELETE FROM items WHERE id >= {rows}".encode())
        seconds = self.timed("DELETE FROM items WHERE id % 10 = 3")
        vacuum = self.timed("VACUUM items")
        truth = self.truth(rows)
        return {
            "delete seconds": seconds,
            "vacuum seconds": vacuum,
            "index bytes": value(self.conn, "SELECT pg_relation_size('items_near')"),
            **self.ask(
                "",
                self.parameters,
                lambda found: truth.recall(found, lambda ids: ids % 10 == 3),
                (),
            ),
        }

    def reindex(self, rows: int) -> dict[str, Any]:
        return self.build_by("REINDEX INDEX items_near")


class Beside:
    """The same query by HNSW and by bq; settings are ("hnsw", ef_search) and ("bq", recall)."""

    def __init__(self, conn: Conn, parameters: list[list[bytes]]) -> None:
        self.conn = conn
        self.floor = Statement(conn, "floor", "SELECT 1", [[]])
        self.statements = {}
        for name, index in (("hnsw", "hnsw"), ("bq", "near")):
            show_only(conn, index)
            statement = Statement(conn, name, NEAREST.format(""), parameters)
            plan = value(conn, f"EXPLAIN (FORMAT JSON) EXECUTE {name} (NULL)")  # is kept
            if f"'items_{index}'" not in str(plan):
                raise RuntimeError(f"the plan of {name} does not use items_{index}: {plan}")
            self.statements[name] = statement

    def settings(self) -> list[tuple[Any, ...]]:
        asked = (*LOWER, *RECALLS, 0.995, 0.998)
        return [("hnsw", ef) for ef in EF_SEARCH] + [("bq", wanted) for wanted in asked]

    def set(self, setting: tuple[Any, ...]) -> Statement:
        name, knob = setting
        self.conn.execute(f"SET {KNOBS[name]} = {knob}".encode())
        return self.statements[name]

    def point(
        self, setting: tuple[Any, ...], recall: Callable[[list[list[int]]], float]
    ) -> dict[str, Any]:
        statement = self.set(setting)
        found, times = [], []
        for q in range(QUERIES):
            start = time.perf_counter()
            found.append(statement(q))
            times.append(time.perf_counter() - start)
        return {"setting": setting, "recall": recall(found), "seconds": statistics.median(times)}


def copy(conn: Conn, table: str, first: int, categories: Array, vectors: Array) -> None:
    ids = np.arange(first, first + len(vectors), dtype=np.int64)
    columns = [("int8", ids), ("int4", categories), ("halfvec", vectors)]
    with conn.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)".encode()) as writing:
        for part in copy_bytes(columns):
            writing.write(part)


def count(plan: Any, label: str) -> int:
    found = re.search(rf"'{label}': (\d+)", str(plan))
    return int(found[1]) if found else 0


def pages_read(conn: Conn) -> int:
    conn.execute("SELECT pg_stat_force_next_flush()")
    return int(
        value(conn, "SELECT blks_read FROM pg_stat_database WHERE datname = current_database()")
    )


class Writer:
    """A client that inserts single rows, each a transaction, and notes how long each took."""

    def __init__(self, conn: Conn, table: str, first: int, vectors: Array) -> None:
        header = struct.pack("!HH", Stream.DIM, 0)
        rows = [
            [None, struct.pack("!i", i % CATEGORIES), header + vector.astype(">f2").tobytes()]
            for i, vector in enumerate(vectors[: Stream.CHUNK // 4])
        ]
        self.conn, self.first, self.rows = conn, first, rows
        self.times: list[float] = []
        self._taken = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        conn.pgconn.prepare(b"write", f"INSERT INTO {table} VALUES ($1, $2, $3)".encode())

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[float]:
        """The times since the last call."""
        times = self.times[self._taken :]
        self._taken += len(times)
        return times

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._stop.is_set():
            n = len(self.times)
            row = [struct.pack("!q", self.first + n), *self.rows[n % len(self.rows)][1:]]
            start = time.perf_counter()
            result = self.conn.pgconn.exec_prepared(b"write", row, [1, 1, 1], 1)
            self.times.append(time.perf_counter() - start)
            if result.status != 1:
                raise RuntimeError(result.error_message.decode())


# -- a run ---------------------------------------------------------------------------------------


def bytes_needed(rows: int, phases: list[str]) -> int:
    """At the most at a time: table, two indexes while one is made anew, WAL."""
    needed = rows * (TABLE_BYTES_PER_ROW + 2 * INDEX_BYTES_PER_ROW) + WAL_BYTES
    if "hnsw" in phases:
        needed += min(rows, HNSW_SIZE) * HNSW_BYTES_PER_ROW
    if "regroup" in phases:
        needed += min(rows, REGROUPED) * (TABLE_BYTES_PER_ROW + 2 * INDEX_BYTES_PER_ROW)
    return needed


def announce(out: Path, rows: int, phases: list[str]) -> None:
    """Say what a run takes; stop if the disk is too small for it."""
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    needed = bytes_needed(rows, phases) - there
    free = shutil.disk_usage(out).free
    print(
        f"{rows:,} rows: {max(0, needed) / 1e9:.0f} GB of disk more than is used now,"
        f" {free / 1e9:.0f} GB are free; from the beginning about"
        f" {1 + rows / 1e6 * MINUTES_PER_MILLION:.0f} minutes on two cores",
        flush=True,
    )
    if free < needed * 1.05:
        raise SystemExit(f"not enough disk: {needed / 1e9:.0f} GB are needed in {out}")


def run(folder: Path, out: Path, rows: int, phases: list[str]) -> None:
    measuring = Run(folder, out)
    results = measuring.results
    grown = [int(name.split()[0]) for name in results.kept if name.split()[-1] in LAST_PHASES]
    if grown and max(grown) < rows:
        raise SystemExit(f"the table was changed at {max(grown)} rows; remove {out} to begin anew")
    sizes = [size for size in SIZES if size <= rows]
    with contextlib.ExitStack() as stack:
        stack.callback(measuring.stop)
        measuring.start()
        known = describe(
            measuring.conn,
            data=f"sets.Stream, {Stream.DIM} dimensions, seed {SEED}, {QUERIES} queries",
            settings=", ".join(f"{name} {setting}" for name, setting in SETTINGS.items()),
        )
        results.put(0, "known", known)
        # only what is later than all that is there: the table stands at that size
        at = max(
            [int(name.split()[0]) for name in results.kept if name.endswith(" load")], default=0
        )
        for size in sizes:
            wanted = [
                phase
                for phase in PHASES
                if phase in phases
                and (phase not in LAST_PHASES or size == sizes[-1])
                and (phase != "hnsw" or size == min(sizes[-1], HNSW_SIZE))
            ]
            for phase in wanted:
                if results.has(size, phase) or size < at:
                    continue
                result = getattr(measuring, phase)(size)
                results.put(size, phase, {**result, "load": os.getloadavg()[0]})
                print(f"{size:,} {phase}: {json.dumps(result)}", flush=True)


# -- what is shown -------------------------------------------------------------------------------


def table(results: Results) -> Iterator[str]:
    sizes = [size for size in SIZES if results.has(size, "build")]

    def row(what: str, cell: Callable[[int], str]) -> str:
        cells = []
        for size in sizes:
            try:
                cells.append(cell(size))
            except (KeyError, TypeError, ZeroDivisionError):
                cells.append("")
        return f"| {what} | {' | '.join(cells)} |"

    def of(phase: str, *names: str) -> Callable[[int], Any]:
        def get(size: int) -> Any:
            found: Any = results.get(size, phase)
            for name in names:
                found = found[name]
            return found

        return get

    yield f"| rows | {' | '.join(f'{size:,}' for size in sizes)} |"
    yield f"|---|{'--:|' * len(sizes)}"
    copied = of("load", "rows")
    seconds = of("load", "copy seconds")
    yield row("load, rows/s", lambda n: f"{copied(n) / seconds(n):,.0f}")
    yield row("table, MB", lambda n: f"{of('load', 'table bytes')(n) / 1e6:,.0f}")
    yield row("index, MB", lambda n: f"{of('build', 'index bytes')(n) / 1e6:,.0f}")
    yield row("build, s", lambda n: f"{of('build', 'seconds')(n):.1f}")
    yield row("peak memory, MB", lambda n: f"{of('build', 'peak bytes')(n) / 1e6:,.0f}")
    yield row("lists", lambda n: f"{of('build', 'lists')(n):,}")
    for phase, title in (
        ("query", ""),
        ("filter", "1 % filtered, "),
        ("limited", "a quarter in memory, "),
    ):
        for wanted in (*map(str, RECALLS), "finds .95"):
            got = of(phase, wanted)

            def cell(n: int, got: Callable[[int], Any] = got) -> str:
                return f"{got(n)['ms']:.2f} ({got(n)['recall']:.3f})"

            line = row(f"{title}{wanted}: ms (recall)", cell)
            if any(c.isdigit() for c in line.split("|", 2)[2]):
                yield line
    for wanted in ("0.95", "0.99"):
        if any(results.has(size, "hnsw") for size in sizes):
            ratio = of("hnsw", "hnsw / bq", wanted)
            yield row(f"HNSW / bq at {wanted}", lambda n, ratio=ratio: f"{ratio(n):.1f}")  # type: ignore[misc]
    for name in ("lists", "codes", "vectors"):
        yield row(f"{name} at .95", lambda n, name=name: f"{of('query', '0.95', name)(n):,.0f}")  # type: ignore[misc]
    yield ""
    for size in sizes:
        for phase in LAST_PHASES:
            for name, figure in results.get(size, phase).items():
                yield f"- {size:,} {phase}: {name}: {figure}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True, help="data directory and results")
    parser.add_argument("--rows", type=int, default=SIZES[-1], choices=SIZES)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--report", action="store_true", help="print the table of what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.report:
        if arguments.folder is None:
            parser.error("FOLDER is missing")
        announce(arguments.out, arguments.rows, arguments.phases)
        run(arguments.folder, arguments.out, arguments.rows, arguments.phases)
    print("\n".join(table(Results(arguments.out / "results.json"))))


if __name__ == "__main__":
    main()
