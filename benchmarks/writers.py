"""Several writers at once on one index, and what shifting data do to its size.

    python benchmarks/writers.py
    python benchmarks/writers.py --seconds 60 --json writers.json

Clustered Gaussian vectors, 384 dimensions, seed 20261121, in a table that has a bq index over
100,000 rows.  Each client is a process of its own that sends prepared bytes.

- scaling: rows per second of COPY (500 rows) and of INSERT (one row, prepared) with 1, 2 and 4
  clients, each step in turn, as ratios to one client in the same round
- mixed: for `--seconds`, two clients insert, one deletes, one vacuums, two select; the index must
  then pass bq_index_check(heapallindexed)
- shift: each round deletes all rows, vacuums, and inserts as many around other centres: bytes of
  the index in terms of the first ones
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
from common import copy_bytes, describe, save
from numpy.typing import NDArray

import pybq
from pybq.psycopg import register_bq

SEED = 20261121
DIM = 384
ROWS = 100_000
ROUNDS = 3
SECONDS = 3
SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "autovacuum": False, "fsync": False}

Conn = psycopg.Connection[Any]
Vectors = NDArray[np.float32]
Client = Callable[[str, int, float, float], int]


def make_vectors(seed: int, n: int, centres: int = SEED) -> Vectors:
    """Vectors around 500 centres, shape (n, 384)."""
    rng = np.random.default_rng(seed)
    middle = np.random.default_rng(centres).standard_normal((500, DIM), np.float32)
    noise = rng.standard_normal((n, DIM), np.float32)
    return np.ascontiguousarray(middle[rng.integers(0, 500, n)] + noise)


def connect(dsn: str) -> Conn:
    conn = psycopg.connect(dsn, autocommit=True)
    register_bq(conn)
    return conn


def copy(conn: Conn, vectors: Vectors, first: int = 0) -> None:
    codes = pybq.Quantizer(DIM).encode(vectors)
    ids = np.arange(first, first + len(codes), dtype=np.int32)
    with conn.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as stream:
        for chunk in copy_bytes([("int4", ids), ("bqvec", codes)]):
            stream.write(chunk)


def fill(conn: Conn) -> None:
    conn.execute("DROP TABLE IF EXISTS items")
    conn.execute(f"CREATE TABLE items (id int, code bqvec({DIM}))".encode())
    copy(conn, make_vectors(0, ROWS))
    conn.execute("CREATE INDEX items_code ON items USING bq (code)")


def wait_until(start: float) -> None:
    if time.time() > start:
        raise RuntimeError("the machine is too busy: clients were not ready in time")
    time.sleep(start - time.time())


# -- clients, each in a process ----------------------------------------------------------


def copy_rows(dsn: str, seed: int, start: float, end: float) -> int:
    vectors = make_vectors(seed, 500)
    n = 0
    with connect(dsn) as conn:
        wait_until(start)
        while time.time() < end:
            copy(conn, vectors, seed * 1_000_000 + n)
            n += len(vectors)
    return n


def insert_rows(dsn: str, seed: int, start: float, end: float) -> int:
    codes = [pybq.Code(code) for code in pybq.Quantizer(DIM).encode(make_vectors(seed, 1000))]
    n = 0
    with connect(dsn) as conn:
        wait_until(start)
        while time.time() < end:
            conn.execute(
                "INSERT INTO items VALUES (%s, %s)",
                (seed * 1_000_000 + n, codes[n % 1000]),
                prepare=True,
            )
            n += 1
    return n


def delete_rows(dsn: str, seed: int, start: float, end: float) -> int:
    n = 0
    with connect(dsn) as conn:
        wait_until(start)
        while time.time() < end:
            n += conn.execute("DELETE FROM items WHERE random() < 0.02").rowcount
    return n


def vacuum(dsn: str, seed: int, start: float, end: float) -> int:
    n = 0
    with connect(dsn) as conn:
        wait_until(start)
        while time.time() < end:
            conn.execute("VACUUM (INDEX_CLEANUP ON) items")
            n += 1
    return n


def select_rows(dsn: str, seed: int, start: float, end: float) -> int:
    quantizer = pybq.Quantizer(DIM)
    vectors = make_vectors(seed, 100)
    n = 0
    with connect(dsn) as conn:
        wait_until(start)
        while time.time() < end:
            query = pybq.Query(quantizer.rotate(vectors[n % 100]), 0)
            conn.execute("SELECT id FROM items ORDER BY code <=> %s LIMIT 10", (query,))
            n += 1
    return n


def run(dsn: str, seconds: float, clients: list[Client]) -> list[int]:
    """Run clients at the same time; what each of them counted."""
    start = time.time() + 2 + len(clients)  # all are connected by then
    with multiprocessing.get_context("spawn").Pool(len(clients)) as pool:
        results = [
            pool.apply_async(client, (dsn, seed, start, start + seconds))
            for seed, client in enumerate(clients, 1)
        ]
        return [result.get() for result in results]


# -- measurements --------------------------------------------------------------------------


def scaling(conn: Conn, dsn: str) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for name, client in (("COPY", copy_rows), ("INSERT", insert_rows)):
        rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
        for _ in range(ROUNDS):
            for n in rates:
                fill(conn)
                rates[n].append(sum(run(dsn, SECONDS, [client] * n)) / SECONDS)
        for n, values in rates.items():
            relative = [v / one for v, one in zip(values, rates[1], strict=True)]
            ratios[f"{name} {n}"] = relative
            print(
                f"{name:<7} {n} clients {statistics.median(values):>8.0f} rows/s, "
                f"{statistics.median(relative):.2f} of one client",
                flush=True,
            )
    return ratios


def mixed(conn: Conn, dsn: str, seconds: float) -> list[int]:
    fill(conn)
    clients = [copy_rows, insert_rows, delete_rows, vacuum, select_rows, select_rows]
    counts = run(dsn, seconds, clients)
    conn.execute("SELECT bq_index_check('items_code', true)")
    print(
        f"mixed, {seconds:.0f} s: {counts[0] + counts[1]} rows in, {counts[2]} out, "
        f"{counts[3]} vacuums, {counts[4] + counts[5]} queries; bq_index_check passes",
        flush=True,
    )
    return counts


def shift(conn: Conn) -> list[float]:
    fill(conn)
    query = "SELECT pg_relation_size('items_code')"
    sizes = []
    for centres in range(6):
        (size,) = conn.execute(query).fetchone() or (0,)
        sizes.append(size)
        conn.execute("DELETE FROM items")
        conn.execute("VACUUM items")
        copy(conn, make_vectors(centres, ROWS, centres))
    relative = [size / sizes[0] for size in sizes]
    print("shift: size by round " + " ".join(f"{value:.2f}" for value in relative), flush=True)
    return relative


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of the mixed work [60]")
    parser.add_argument("--json", help="file to write all figures to")
    options = parser.parse_args()
    with pybq.serve(settings=SETTINGS) as server, connect(server.dsn) as conn:
        known = describe(conn, seed=SEED, rows=ROWS, dim=DIM)
        save(
            options.json,
            machine=known,
            shift=shift(conn),
            scaling=scaling(conn, server.dsn),
            mixed=mixed(conn, server.dsn, options.seconds),
        )


if __name__ == "__main__":
    main()
