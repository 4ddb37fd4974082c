"""Ways from pgvector to bq on a table in use: how long each takes, and how long others wait.

    python benchmarks/ways.py [--rows 20000] [--json FILE]

A table of `halfvec(384)` with an HNSW index; one client reads rows by key and one writes single
rows all the while.  docs/from-pgvector.md has what came out.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from common import SETTINGS, describe
from sets import thicken

import pybq

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
import glosses

DIM = 384

# How each is made, and undone.
WAYS = {
    "CREATE INDEX CONCURRENTLY": (
        ["CREATE INDEX CONCURRENTLY items_bq ON items USING bq (embedding halfvec_cosine_ops)"],
        "DROP INDEX items_bq",
    ),
    "CREATE INDEX": (
        ["CREATE INDEX items_bq ON items USING bq (embedding halfvec_cosine_ops)"],
        "DROP INDEX items_bq",
    ),
    "CREATE INDEX CONCURRENTLY ... USING hnsw": (
        [
            "CREATE INDEX CONCURRENTLY items_other ON items"
            " USING hnsw (embedding halfvec_cosine_ops)"
        ],
        "DROP INDEX items_other",
    ),
    "ADD COLUMN ... GENERATED, CREATE INDEX": (
        [
            f"ALTER TABLE items ADD COLUMN code bqvec({DIM})"
            " GENERATED ALWAYS AS (bq_encode(embedding::real[], 1)) STORED",
            "CREATE INDEX CONCURRENTLY items_code ON items USING bq (code)",
        ],
        "ALTER TABLE items DROP COLUMN code",
    ),
}


class Client(threading.Thread):
    """Does one thing again and again; the longest that it took."""

    def __init__(self, dsn: str, statement: str) -> None:
        super().__init__()
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._statement = statement
        self._over = threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        while not self._over.is_set():
            start = time.perf_counter()
            self._conn.execute(self._statement.encode())
            self.longest = max(self.longest, time.perf_counter() - start)
            time.sleep(0.005)

    def stop(self) -> float:
        self._over.set()
        self.join()
        self._conn.close()
        return self.longest


def fill(conn: psycopg.Connection[Any], rows: int) -> None:
    vectors = thicken(glosses.load().vectors, rows)
    table = pybq.Table.create(conn, "items", dim=DIM)
    table.ingest(range(rows), vectors)
    conn.execute("CREATE INDEX items_hnsw ON items USING hnsw (embedding halfvec_cosine_ops)")
    conn.execute("VACUUM ANALYZE items")


def measure(dsn: str, statements: list[str]) -> dict[str, float]:
    reader = Client(dsn, "SELECT id FROM items WHERE id = 1")
    writer = Client(dsn, "DELETE FROM items WHERE id = -1")
    for client in (reader, writer):
        client.start()
    with psycopg.connect(dsn, autocommit=True) as conn:
        start = time.perf_counter()
        for statement in statements:
            conn.execute(statement.encode())
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "reader waits": reader.stop(), "writer waits": writer.stop()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with (
        pybq.serve(settings=SETTINGS) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        known = describe(conn, data=f"{arguments.rows:,} x {DIM}, sentences of the demo, thickened")
        fill(conn, arguments.rows)
        results = {}
        print(f"{'way':<44}{'s':>18}{'reader waits, s':>18}{'writer waits, s':>18}")
        for way, (statements, undo) in WAYS.items():
            found = results[way] = measure(server.dsn, statements)
            times = "".join(f"{seconds:>18.2f}" for seconds in found.values())
            print(f"{way:<44}{times}", flush=True)
            conn.execute(undo.encode())
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": known, "ways": results}, indent=1))


if __name__ == "__main__":
    main()
