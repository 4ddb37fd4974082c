"""Memory and rows per second of Table.load from a Parquet file, beside COPY of prepared bytes.

    python benchmarks/load.py                    # 1,000,000 rows x 384, needs 4 GB of disk
    python benchmarks/load.py --rows 100000 --rounds 3

The file has the demo's vectors, repeated with noise. Each load is a process of its own, so that
its peak memory is its own. `prepared` is COPY BINARY of bytes made beforehand into a table of the
same columns: what is left is the server. Targets: 0.7 of its rate, and 1 GiB. All take turns,
round by round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow
import pyarrow.parquet
from common import describe, save
from ingest import prepare

import pybq

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
import glosses  # noqa: E402

SEED = 20261121
STEP = 50_000
TARGET = 0.7
MOST_NBYTES = 1 << 30


def make_part(base: np.ndarray[Any, Any], first: int, rows: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([SEED, first])
    noise = rng.standard_normal((rows, base.shape[1]), np.float32)
    return base[rng.integers(0, len(base), rows)] + np.float32(0.01) * noise


def write_file(path: Path, base: np.ndarray[Any, Any], rows: int) -> None:
    kind = pyarrow.list_(pyarrow.float32(), base.shape[1])
    schema = pyarrow.schema([("id", pyarrow.int64()), ("embedding", kind)])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none") as writer:
        for first in range(0, rows, STEP):
            part = make_part(base, first, min(STEP, rows - first))
            values = pyarrow.FixedSizeListArray.from_arrays(part.ravel(), base.shape[1])
            writer.write_table(
                pyarrow.table([range(first, first + len(part)), values], schema=schema)
            )


def load(dsn: str, path: str, connections: int) -> None:
    """In the child process."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        table = pybq.Table(conn, "loaded")
        start = time.perf_counter()
        rows = table.load(path, connections=connections, progress=False)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "peak": peak}))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        dsn, path, connections = arguments.load
        load(dsn, path, int(connections))
        return 0

    base = glosses.load().vectors
    dim = base.shape[1]
    settings: dict[str, str | int] = {"shared_buffers": "1GB", "max_wal_size": "8GB"}
    results: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        pybq.serve(settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        known = describe(conn, rows=f"{arguments.rows:,} x {dim}", settings=settings)
        path = Path(folder) / "vectors.parquet"
        write_file(path, base, arguments.rows)
        pybq.Table.create(conn, "prepared", dim, codes=True, transform=1)
        for _ in range(arguments.rounds):
            conn.execute("TRUNCATE prepared")
            conn.execute("CHECKPOINT")
            seconds = 0.0
            for first in range(0, arguments.rows, STEP):
                chunks = prepare(
                    make_part(base, first, min(STEP, arguments.rows - first)), 1, first
                )
                start = time.perf_counter()
                statement = "COPY prepared (id, code, embedding) FROM STDIN WITH (FORMAT binary)"
                with conn.cursor().copy(statement) as copy:
                    for chunk in chunks:
                        copy.write(chunk)
                seconds += time.perf_counter() - start
            for connections in (1, 2):
                conn.execute("DELETE FROM bq_columns WHERE table_name = to_regclass('loaded')")
                conn.execute("DROP TABLE IF EXISTS loaded")
                pybq.Table.create(conn, "loaded", dim, codes=True)
                conn.execute("CHECKPOINT")
                command = [sys.executable, __file__, "--load", server.dsn, path, str(connections)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                assert found["rows"] == arguments.rows
                ratio = seconds / found["seconds"]
                results.append({"connections": connections, "ratio": ratio, **found})
                print(
                    f"{connections} connection{'s' if connections > 1 else ' '}"
                    f"  {found['rows'] / found['seconds']:8,.0f} rows/s, {ratio:.2f} of prepared"
                    f" ({arguments.rows / seconds:,.0f} rows/s),"
                    f" peak {found['peak'] / 2**20:,.0f} MiB",
                    flush=True,
                )
    save(arguments.json, known={k: str(v) for k, v in known.items()}, results=results)
    ratio = float(np.median([r["ratio"] for r in results if r["connections"] == 1]))
    peak = max(r["peak"] for r in results)
    print(f"\nload reaches {ratio:.2f} of prepared bytes, target {TARGET};", end=" ")
    print(f"peak {peak / 2**20:,.0f} MiB, target {MOST_NBYTES / 2**20:,.0f}")
    return 0 if ratio >= TARGET and peak <= MOST_NBYTES else 1


if __name__ == "__main__":
    sys.exit(main())
