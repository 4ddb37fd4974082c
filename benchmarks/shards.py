"""One table beside the same rows on several servers by postgres_fdw: recall, and time of a query.

    python benchmarks/shards.py FOLDER --bin /path/to/postgresql/bin [--rows 100000] [--shards 4]

The programs are of a PostgreSQL that has postgres_fdw, pgvector and bq: `make bench-shards` takes
Debian's 17.  Rows are dense ones (sets.py).  Each query is asked in turn of

- one table on the coordinator
- each shard, by a connection of its own
- each shard, by its foreign table
- all: the nearest of each by a subquery, as `Table.search` asks; the flat query, as it is and with
  server options that have few rows fetched at a time and the remote planner expect few

Targets: recall as of one table, within .01; time no more than a millisecond above the slowest
shard's, by the median of differences within a query.  All shards share this machine's cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from common import SETTINGS, Statement, copy_bytes, describe, recall, report, save
from sets import dense, kth_similarity

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from torture.cluster import Cluster

DIM = 384
ORDER = "ORDER BY v <=> $1 LIMIT 10"
COORDINATOR = {name: value for name, value in SETTINGS.items() if name != "shared_buffers"}


def start(folder: Path, bin: Path, buffers: str) -> Cluster:
    cluster = Cluster(bin, folder, **{**COORDINATOR, "shared_buffers": buffers})
    cluster.create()
    cluster.start()
    return cluster


def connect(cluster: Cluster) -> psycopg.Connection[Any]:
    conn = psycopg.connect(cluster.dsn, autocommit=True)
    conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE")
    return conn


def fill(conn: psycopg.Connection[Any], ids: Any, base: Any) -> None:
    conn.execute(f"CREATE TABLE items (id bigint PRIMARY KEY, v vector({DIM}))")
    with conn.cursor().copy("COPY items FROM STDIN (FORMAT BINARY)") as copy:
        for part in copy_bytes([("int8", ids), ("vector", base[ids])]):
            copy.write(part)
    conn.execute("CREATE INDEX ON items USING bq (v vector_cosine_ops)")
    conn.execute("VACUUM ANALYZE items")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    base, queries = dense(arguments.folder, arguments.rows)
    kth = kth_similarity(base, queries)
    work = Path(tempfile.mkdtemp(prefix="bq-shards-"))
    work.chmod(0o755)
    clusters: list[Cluster] = []
    try:
        for i in range(arguments.shards + 1):
            buffers = "1GB" if i == 0 else "512MB"
            clusters.append(start(work / str(i), arguments.bin, buffers))
        measure(clusters, base, queries, kth, arguments.json)
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(work)


def measure(clusters: list[Cluster], base: Any, queries: Any, kth: Any, path: str | None) -> None:
    import numpy as np

    local, *remote = [connect(cluster) for cluster in clusters]
    n = len(remote)
    known = describe(
        local, data=f"dense, {len(base):,} x {DIM}, {n} shards, {len(queries)} queries"
    )
    fill(local, np.arange(len(base)), base)
    local.execute("CREATE EXTENSION postgres_fdw")
    for name in ("sharded", "few"):
        local.execute(f"CREATE TABLE {name} (id bigint, v vector({DIM})) PARTITION BY LIST (id)")
    for i, (cluster, conn) in enumerate(zip(clusters[1:], remote, strict=True)):
        fill(conn, np.arange(i, len(base), n), base)
        place = f"host '{cluster.folder}', port '{cluster.port}', dbname 'postgres'"
        for name, more in (
            ("sharded", ""),
            ("few", ", fetch_size '10', options '-c cursor_tuple_fraction=1e-9'"),
        ):
            bounds = "DEFAULT" if i == 0 else f"FOR VALUES IN ({-i})"  # never written here
            for statement in (
                f"CREATE SERVER {name}_{i} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({place},"
                f" extensions 'vector, bq, bq_pgvector', async_capable 'true'{more})",
                f"CREATE USER MAPPING FOR CURRENT_USER SERVER {name}_{i} OPTIONS (user 'postgres')",
                f"CREATE FOREIGN TABLE {name}_{i} PARTITION OF {name} {bounds}"
                f" SERVER {name}_{i} OPTIONS (table_name 'items')",
            ):
                local.execute(statement.encode())
    parts = " UNION ALL ".join(
        f"(SELECT id, v <=> $1 AS distance FROM sharded_{i} {ORDER})" for i in range(n)
    )
    header = struct.pack("!HH", DIM, 0)
    vectors = [[header + query.astype(">f4").tobytes()] for query in queries]
    select = "SELECT id, v <=> $1 FROM"
    systems = {
        "one table": Statement(local, "whole", f"{select} items {ORDER}", vectors),
        **{
            f"shard {i}": Statement(conn, "alone", f"{select} items {ORDER}", vectors)
            for i, conn in enumerate(remote)
        },
        **{
            f"foreign table {i}": Statement(
                local, f"foreign_{i}", f"{select} sharded_{i} {ORDER}", vectors
            )
            for i in range(n)
        },
        "all, a subquery for each": Statement(
            local,
            "each",
            f"SELECT * FROM ({parts} OFFSET 0) AS parts ORDER BY distance LIMIT 10",
            vectors,
        ),
        "all, flat": Statement(local, "flat", f"{select} sharded {ORDER}", vectors),
        "all, flat, few rows": Statement(local, "flat_few", f"{select} few {ORDER}", vectors),
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    for i in range(-20, len(queries)):
        for name, statement in systems.items():
            begin = time.perf_counter()
            statement(i)
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - begin))
    recalls = {
        name: recall(systems[name], base, queries, kth)
        for name in systems
        if "shard" not in name and "foreign" not in name
    }
    for name, each in times.items():
        found = f"recall {recalls[name]:.3f}" if name in recalls else ""
        p95 = sorted(each)[int(0.95 * len(each))]
        print(f"  {name:28} {statistics.median(each):7.2f} ms  p95 {p95:7.2f}  {found}")
    print(f"  load {os.getloadavg()[0]:.2f}\n")
    sharded = "all, a subquery for each"
    above = {
        what: statistics.median(
            times[sharded][q] - max(times[f"{what} {i}"][q] for i in range(n))
            for q in range(len(queries))
        )
        for what in ("shard", "foreign table")
    }
    lost = recalls["one table"] - recalls[sharded]
    figures = [
        report("recall of one table less that of all shards", lost, "<= 0.01", lost <= 0.01),
        report(
            "ms above the slowest shard by its foreign table",
            above["foreign table"],
            "<= 1",
            above["foreign table"] <= 1,
        ),
        report(
            "ms above the slowest shard, asked directly",
            above["shard"],
            "<= 1",
            above["shard"] <= 1,
        ),
    ]
    save(path, known=known, times=times, recalls=recalls, figures=figures)


if __name__ == "__main__":
    main()
