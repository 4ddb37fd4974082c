"""One table beside the same rows distributed by Citus over two workers: recall, times of queries.

    python benchmarks/citus.py FOLDER --bin /path/to/postgresql/bin [--rows 100000]

The programs are of a PostgreSQL that has Citus, pgvector and bq: `make bench-citus`.  Rows are
dense ones (sets.py).  The same prepared flat query is asked in turn of one table, of tables of 2, 4
and 32 shards, of one shard by a connection to its worker, and of one of eight tenants.  All servers
share this machine's cores.
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

import numpy as np
import psycopg
from common import SETTINGS, Statement, copy_bytes, describe, recall, report, save
from sets import dense, kth_similarity

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from torture.cluster import Cluster

DIM, TENANTS, TURN = 384, 8, 60
SHARDS = (2, 4, 32)  # 32: Citus' default
ORDER = "ORDER BY v <=> $1 LIMIT 10"


def start(folder: Path, bin: Path) -> Cluster:
    # generic plans Citus cannot distribute
    changes = {"plan_cache_mode": "auto", "shared_buffers": "512MB"}
    settings = {**SETTINGS, **changes, "shared_preload_libraries": "citus"}
    cluster = Cluster(bin, folder, **settings)
    cluster.create()
    cluster.start()
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION citus")
    return cluster


def fill(conn: psycopg.Connection[Any], name: str, base: Any, shards: int, by: str) -> None:
    """A table of so many shards; of none: one that is not distributed."""
    conn.execute(f"CREATE TABLE {name} (id bigint, tenant int, v vector({DIM}))".encode())
    if shards:
        conn.execute(
            "SELECT create_distributed_table(%s, %s, shard_count => %s, colocate_with => 'none')",
            (name, by, shards),
        )
    ids = np.arange(len(base))
    with conn.cursor().copy(f"COPY {name} FROM STDIN (FORMAT BINARY)".encode()) as copy:
        tenants = (ids % TENANTS).astype(np.int32)
        for part in copy_bytes([("int8", ids), ("int4", tenants), ("vector", base)]):
            copy.write(part)
    conn.execute(f"CREATE INDEX ON {name} USING bq (v vector_cosine_ops)".encode())
    conn.execute(f"VACUUM ANALYZE {name}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    base, queries = dense(arguments.folder, arguments.rows)
    kth = kth_similarity(base, queries)
    work = Path(tempfile.mkdtemp(prefix="bq-citus-"))
    work.chmod(0o755)
    clusters: list[Cluster] = []
    try:
        for i in range(3):
            clusters.append(start(work / str(i), arguments.bin))
        measure(clusters, base, queries, kth, arguments.json)
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(work)


def measure(clusters: list[Cluster], base: Any, queries: Any, kth: Any, path: str | None) -> None:
    conn = clusters[0].connect()
    places = [(str(cluster.folder), cluster.port) for cluster in clusters]
    conn.execute("SELECT citus_set_coordinator_host(%s, %s)", places[0])
    for place in places[1:]:
        conn.execute("SELECT citus_add_node(%s, %s)", place)
    conn.execute("CREATE EXTENSION bq_pgvector CASCADE")
    data = f"dense, {len(base):,} x {DIM}, 2 workers, {len(queries)} queries"
    known = describe(conn, data=data)
    fill(conn, "whole", base, 0, "")
    for n in SHARDS:
        fill(conn, f"shards_{n}", base, n, "id")
    fill(conn, "tenants", base, 32, "tenant")
    shard, host = conn.execute(
        "SELECT shard_name(table_name, shardid), nodename FROM citus_shards"
        " WHERE table_name = 'shards_2'::regclass ORDER BY shardid LIMIT 1"
    ).fetchone() or ("", "")
    worker = next(cluster for cluster in clusters if str(cluster.folder) == host).connect()

    # as many as one query opens to a worker; otherwise all but one are closed after it
    keeping = clusters[0].connect(**{"citus.max_cached_conns_per_worker": 16})

    header = struct.pack("!HH", DIM, 0)
    vectors = [[header + query.astype(">f4").tobytes()] for query in queries]
    select = "SELECT id, v <=> $1 FROM"
    systems = {
        "one table": Statement(conn, "whole", f"{select} whole {ORDER}", vectors),
        "one shard of 2, on its worker": Statement(
            worker, "shard", f"{select} {shard} {ORDER}", vectors
        ),
        **{
            f"{n} shards{what}": Statement(
                session, f"of_{n}", f"{select} shards_{n} {ORDER}", vectors
            )
            for n in SHARDS
            for what, session in (("", conn), (", connections kept", keeping))
        },
        "one tenant of 8": Statement(
            conn, "tenant", f"{select} tenants WHERE tenant = 3 {ORDER}", vectors
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    # In turns of many: connections to workers that are not kept end beside what is asked next.
    for first in range(0, len(queries), TURN):
        for name, statement in systems.items():
            for i in range(first - 10, min(first + TURN, len(queries))):
                begin = time.perf_counter()
                statement(i)
                if i >= first:
                    times[name].append(1e3 * (time.perf_counter() - begin))
    wholes = ["one table", *(name for name in systems if "shards" in name)]
    recalls = {name: recall(systems[name], base, queries, kth) for name in wholes}
    for name, each in times.items():
        found = f"recall {recalls[name]:.3f}" if name in recalls else ""
        p95 = sorted(each)[int(0.95 * len(each))]
        print(f"  {name:30} {statistics.median(each):7.2f} ms  p95 {p95:7.2f}  {found}")
    print(f"  load {os.getloadavg()[0]:.2f}\n")
    lost = max(recalls["one table"] - recalls[name] for name in wholes[1:])
    figures = [report("recall of one table less that of shards", lost, "<= 0", lost <= 0)]
    save(path, known=known, times=times, recalls=recalls, figures=figures)


if __name__ == "__main__":
    main()
