"""Many queries: one by one, a thousand at once, and by several clients.

    python benchmarks/throughput.py FOLDER
    python benchmarks/throughput.py FOLDER --sets wordnet --parts batch --rounds 11

FOLDER holds wordnet.npz; sets.py says what is made from it.  Each set is a table (id, embedding
halfvec) with a bq index by cosine; all is in shared buffers.

- batch: 1,000 queries of ten rows each, in turn
    - single: a prepared flat statement for each, sent one after the other
    - pipeline: the same, all sent before the first answer is read
    - lateral: one statement, unnest($1) CROSS JOIN LATERAL the flat query
    - together: one statement, bq_search($1) JOIN items, by default and with work_mem of 64 MB
    - search: `Table.search` of the matrix, output="numpy"
  Queries per second, and the time that the server's process was on a CPU; both as ratios to
  `single` of the same round.
- clients: 1, 2, 4 and 8 clients, each a process that sends prepared flat statements one after the
  other, for `--seconds`: queries per second of all, median and 99th percentile of a query's time.
  Idle, and while another client loads by COPY (500 rows at a time), one vacuums the table over and
  over, and one calls CHECKPOINT each second.  Clients share the machine with the server.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from common import SETTINGS, Array, Conn, Statement, copy_bytes, describe, save
from sets import K, dense, kth_similarity, load_all, unit

import pybq

ROUNDS = 7
PARTS = ("batch", "clients")
CLIENTS = (1, 2, 4, 8)
COPIED = 500  # rows of a COPY
SETS: dict[str, Callable[[Path], Array]] = {
    "wordnet": lambda folder: load_all(folder, "wordnet")[0],
    "dense-300k": lambda folder: dense(folder, 300_000)[0],
}
FLAT = f"SELECT id FROM items ORDER BY embedding <=> $1 LIMIT {K}"
LATERAL = (
    "SELECT r.id FROM unnest($1::halfvec[]) WITH ORDINALITY AS q (v, n) CROSS JOIN LATERAL"
    f" (SELECT id FROM items ORDER BY embedding <=> q.v LIMIT {K}) AS r"
)
TOGETHER = (
    f"SELECT id FROM bq_search('items_bq', $1::halfvec[], {K}) AS s"
    " JOIN items ON items.ctid = s.tid ORDER BY s.query"
)


def to_halfvec(x: Array) -> bytes:
    return struct.pack("!HH", len(x), 0) + x.astype(">f2").tobytes()


def to_array(values: list[bytes], oid: int) -> bytes:
    """Values in binary as a binary array of theirs."""
    parts = [struct.pack("!iiIii", 1, 0, oid, len(values), 1)]
    for value in values:
        parts += [struct.pack("!i", len(value)), value]
    return b"".join(parts)


def fill(conn: Conn, base: Array) -> None:
    conn.execute("DROP TABLE IF EXISTS items")
    conn.execute(
        f"CREATE TABLE items (id int PRIMARY KEY, embedding halfvec({base.shape[1]}))".encode()
    )
    ids = np.arange(len(base), dtype=np.int32)
    with conn.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as copy:
        for chunk in copy_bytes([("int4", ids), ("halfvec", base)]):
            copy.write(chunk)
    conn.execute("CREATE INDEX items_bq ON items USING bq (embedding halfvec_cosine_ops)")
    conn.execute("VACUUM (FREEZE, ANALYZE) items")
    conn.execute("CHECKPOINT")


# -- a thousand at once --------------------------------------------------------------------


class Backend:
    """Time that the process of a connection has been on a CPU."""

    def __init__(self, conn: Conn) -> None:
        self.file = Path(f"/proc/{conn.info.backend_pid}/schedstat")

    def seconds(self) -> float:
        return int(self.file.read_text().split()[0]) / 1e9


def make_systems(conn: Conn, queries: Array) -> dict[str, Callable[[], Array]]:
    """Each returns the ids found, of shape (q, K)."""
    vectors = [to_halfvec(q) for q in queries]
    oid = conn.execute("SELECT 'halfvec'::regtype::oid").fetchone()
    assert oid is not None
    array = [[to_array(vectors, oid[0])]]
    flat = Statement(conn, "flat", FLAT, [[v] for v in vectors])
    lateral = Statement(conn, "lateral", LATERAL, array)
    plan = conn.execute('EXPLAIN EXECUTE "lateral" (NULL)').fetchall()
    if not any("items_bq" in line for (line,) in plan):
        raise RuntimeError(f"the lateral join does not use the index: {plan}")
    together = Statement(conn, "together", TOGETHER, array)
    table = pybq.Table(conn, "items")

    def search_at_once(work_mem: str | None) -> Array:
        if work_mem is not None:
            conn.execute(f"SET work_mem = '{work_mem}'".encode())
        ids = np.array(together(0)).reshape(len(queries), K)
        conn.execute("RESET work_mem")
        return ids

    def pipeline() -> Array:
        with conn.pipeline():
            cursors = [conn.execute(FLAT_PSYCOPG, (q,), binary=True) for q in halves]
            return np.array([[row[0] for row in c.fetchall()] for c in cursors])

    halves = [_Half(v) for v in vectors]
    return {
        "single": lambda: np.array([flat(i) for i in range(len(queries))]),
        "pipeline": pipeline,
        "lateral": lambda: np.array(lateral(0)).reshape(len(queries), K),
        "together": lambda: search_at_once(None),
        "together, 64 MB": lambda: search_at_once("64MB"),
        "search": lambda: table.search(queries, k=K, output="numpy").ids,
    }


FLAT_PSYCOPG = FLAT.replace("$1", "%s")


class _Half(bytes):
    """A halfvec in binary, as psycopg is to send it."""


def register_half(conn: Conn) -> None:
    oid = conn.execute("SELECT 'halfvec'::regtype::oid").fetchone()
    assert oid is not None
    dumper = type(
        "HalfDumper",
        (psycopg.adapt.Dumper,),
        {
            "format": psycopg.pq.Format.BINARY,
            "oid": oid[0],
            "dump": lambda self, value: bytes(value),
        },
    )
    conn.adapters.register_dumper(_Half, dumper)


def batch(conn: Conn, base: Array, queries: Array, rounds: int) -> dict[str, Any]:
    register_half(conn)
    systems = make_systems(conn, queries)
    backend = Backend(conn)
    kth = kth_similarity(base, queries)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    found = {}
    for name, system in systems.items():  # into shared buffers
        ids = system()
        near = np.einsum("qkd,qd->qk", base[ids], queries) >= kth[:, None] - 1e-6
        found[name] = float(near.mean())
    for _ in range(rounds):
        for name, system in systems.items():
            cpu, start = backend.seconds(), time.perf_counter()
            system()
            times[name].append((time.perf_counter() - start, backend.seconds() - cpu))
    results: dict[str, Any] = {}
    for name, values in times.items():
        ratios = [
            [one[i] / own[i] for own, one in zip(values, times["single"], strict=True)]
            for i in (0, 1)
        ]
        wall, cpu = (statistics.median(v[i] for v in values) for i in (0, 1))
        results[name] = {"times": values, "recall": found[name], "ratios": ratios}
        print(
            f"  {name:15} recall {found[name]:.4f}  {len(queries) / wall:7.0f} queries/s,"
            f" {statistics.median(ratios[0]):.2f} of single"
            f" ({min(ratios[0]):.2f} to {max(ratios[0]):.2f});"
            f"  server {cpu / len(queries) * 1e6:6.1f} us each, {statistics.median(ratios[1]):.2f}",
            flush=True,
        )
    return results


# -- clients, each in a process ------------------------------------------------------------


def connect(dsn: str) -> Conn:
    return psycopg.connect(dsn, autocommit=True)


def ask(dsn: str, vectors: list[bytes], seed: int, seconds: float) -> list[float]:
    """Times of queries."""
    times = []
    with connect(dsn) as conn:
        flat = Statement(conn, "flat", FLAT, [[v] for v in vectors])
        for i in range(100):
            flat(i)
        end = begin_together(seconds)
        i = seed * len(vectors) // max(CLIENTS)
        while time.time() < end:
            begin = time.perf_counter()
            flat(i)
            times.append(time.perf_counter() - begin)
            i += 1
    return times


def load(dsn: str, vectors: list[bytes], seconds: float) -> int:
    """Rows copied."""
    rows = np.stack([np.frombuffer(v[4:], ">f2").astype(np.float32) for v in vectors[:COPIED]])
    n = 0
    with connect(dsn) as conn:
        row = conn.execute("SELECT max(id) FROM items").fetchone()
        assert row is not None
        first = row[0] + 1
        end = begin_together(seconds)
        while time.time() < end:
            ids = np.arange(first + n, first + n + len(rows), dtype=np.int32)
            with conn.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as copy:
                for chunk in copy_bytes([("int4", ids), ("halfvec", rows)]):
                    copy.write(chunk)
            n += len(rows)
    return n


def repeat(dsn: str, statement: str, pause: float, seconds: float) -> int:
    n = 0
    with connect(dsn) as conn:
        end = begin_together(seconds)
        while time.time() < end:
            conn.execute(statement.encode())
            n += 1
            time.sleep(pause)
    return n


def begin_together(seconds: float) -> float:
    """Wait until all clients are connected; when to end."""
    _barrier.wait(300)
    return time.time() + seconds


def keep_barrier(barrier: Any) -> None:
    """In each process, as it begins: barriers are inherited, not sent."""
    global _barrier
    _barrier = barrier


_barrier: Any = None


def clients(dsn: str, queries: Array, seconds: float) -> list[dict[str, Any]]:
    vectors = [to_halfvec(q) for q in queries]
    results = []
    for busy in (False, True):
        for n in CLIENTS:
            context = multiprocessing.get_context("spawn")
            size = n + 3 * busy
            with context.Pool(size, keep_barrier, (context.Barrier(size),)) as pool:
                asked = [pool.apply_async(ask, (dsn, vectors, i, seconds)) for i in range(n)]
                others = []
                if busy:
                    others = [
                        pool.apply_async(load, (dsn, vectors, seconds)),
                        pool.apply_async(repeat, (dsn, "VACUUM items", 0, seconds)),
                        pool.apply_async(repeat, (dsn, "CHECKPOINT", 1, seconds)),
                    ]
                times = np.concatenate([each.get() for each in asked])
                counts = [each.get() for each in others]
            figures = {
                "clients": n,
                "busy": busy,
                "queries_per_second": len(times) / seconds,
                "p50": float(np.median(times)),
                "p99": float(np.percentile(times, 99)),
                "rows_vacuums_checkpoints": counts,
            }
            results.append(figures)
            beside = "; {} rows copied, {} vacuums, {} checkpoints".format(*counts) if busy else ""
            print(
                f"  {n} clients, {'busy' if busy else 'idle'}: {len(times) / seconds:6.0f}"
                f" queries/s, p50 {figures['p50'] * 1e3:.2f} ms, p99 {figures['p99'] * 1e3:.2f} ms"
                f"{beside}",
                flush=True,
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=10, help="for each number of clients [10]")
    parser.add_argument("--json", help="file to write all figures to")
    options = parser.parse_args()
    queries = load_all(options.folder, "wordnet")[1]
    queries = unit(queries.astype(np.float16))
    with tempfile.TemporaryDirectory(prefix="bq-throughput-") as folder:
        Path(folder).chmod(0o755)  # the server may run as another user
        with (
            pybq.serve(Path(folder) / "data", settings=SETTINGS) as server,
            psycopg.connect(server.dsn, autocommit=True) as conn,
        ):
            measure(conn, server.dsn, queries, options)


def measure(conn: Conn, dsn: str, queries: Array, options: argparse.Namespace) -> None:
    conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector")
    results: dict[str, Any] = {}
    known = describe(conn, queries=len(queries))
    for name in options.sets:
        base = unit(SETS[name](options.folder).astype(np.float16))
        print(f"{name}, {len(base):,} x {base.shape[1]}", flush=True)
        fill(conn, base)
        results[name] = {}
        if "batch" in options.parts:
            results[name]["batch"] = batch(conn, base, queries, options.rounds)
        if "clients" in options.parts:
            results[name]["clients"] = clients(dsn, queries, options.seconds)
    save(options.json, machine=known, results=results)


if __name__ == "__main__":
    main()
