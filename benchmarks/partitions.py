"""One table beside the same rows in partitions that are all searched: time and recall.

    python benchmarks/partitions.py [--rows 100000] [--partitions 10] [--json FILE]

docs/growing.md has what came out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from common import SETTINGS, describe
from sets import K, thicken

import pybq

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
import glosses

DIM = 384
ROUNDS = 5
NEAREST = f"SELECT id FROM {{}} ORDER BY embedding <=> %s::halfvec LIMIT {K}"


def fill(conn: psycopg.Connection[Any], vectors: Any, partitions: int) -> None:
    columns = f"id bigint, embedding halfvec({DIM}), PRIMARY KEY (id)"
    conn.execute(f"CREATE TABLE whole ({columns})")
    conn.execute(f"CREATE TABLE parts ({columns}) PARTITION BY HASH (id)")
    for i in range(partitions):
        conn.execute(
            f"CREATE TABLE part_{i} PARTITION OF parts"
            f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {i})"
        )
    for name in ("whole", "parts"):
        pybq.Table(conn, name).ingest(range(len(vectors)), vectors)
        conn.execute(f"CREATE INDEX ON {name} USING bq (embedding halfvec_cosine_ops)")
        conn.execute(f"VACUUM ANALYZE {name}")


def ask(conn: psycopg.Connection[Any], name: str, queries: list[str]) -> tuple[float, list[Any]]:
    """Median time of a query, in seconds, and the keys that each found."""
    statement = NEAREST.format(name).encode()
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        rows = conn.execute(statement, [query], prepare=True).fetchall()
        times.append(time.perf_counter() - start)
        found.append([row[0] for row in rows])
    return statistics.median(times), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = glosses.load()
    vectors = thicken(data.vectors, arguments.rows)
    truth = np.argsort(-(data.queries @ vectors.T), axis=1)[:, :K].tolist()
    queries = [str(query.tolist()) for query in data.queries]
    with (
        pybq.serve(settings=SETTINGS) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        known = describe(conn, data=f"{arguments.rows:,} x {DIM}, sentences of the demo, thickened")
        fill(conn, vectors, arguments.partitions)
        conn.execute("SET enable_seqscan = off")
        rounds = [
            {name: ask(conn, name, queries) for name in ("whole", "parts")} for _ in range(ROUNDS)
        ]
    results: dict[str, dict[str, float]] = {}
    for name in ("whole", "parts"):
        found = rounds[0][name][1]
        share = np.mean([len({*a} & {*b}) / K for a, b in zip(found, truth, strict=True)])
        seconds = statistics.median(each[name][0] for each in rounds)
        results[name] = {"ms": seconds * 1e3, "recall": float(share)}
        print(f"{name:<8}{seconds * 1e3:8.2f} ms   recall@{K} {share:.3f}")
    ratio = statistics.median(each["parts"][0] / each["whole"][0] for each in rounds)
    print(f"partitions take {ratio:.1f} times as long (median of {ROUNDS} rounds)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": known, **results}, indent=1))


if __name__ == "__main__":
    main()
