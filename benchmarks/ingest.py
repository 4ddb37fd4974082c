"""Rows per second of Table.ingest, beside COPY of prepared bytes and beside pgvector's loading.

    python benchmarks/ingest.py                       # the demo's vectors, repeated
    python benchmarks/ingest.py FOLDER --set wordnet  # real ones; see benchmarks/recall.py
    python benchmarks/ingest.py --json ingest.json

    prepared    COPY BINARY by plain psycopg of bytes made beforehand, into the same table: id with
                its primary key, code, halfvec. What is left is the server. Target: Table.ingest
                reaches 0.7 of it
    ingest      Table.ingest, codes on the axes and rotated: checks, statistics, halfvec, encoding,
                COPY, and the statistics into bq_columns
    first       the same with the choice between axes and rotation
    pgvector    as pgvector-python's README loads: COPY BINARY with set_types and write_row, into a
                table of id with its primary key and vector

All take turns, round by round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from common import copy_bytes, describe, save
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

import pybq

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
import glosses  # noqa: E402

TARGET = 0.7

Array = NDArray[Any]


def load(folder: Path | None, name: str, rows: int) -> Array:
    """Return unit vectors; those of the demo repeat, which the server does not notice."""
    if folder is None:
        vectors = glosses.load().vectors
    else:
        with np.load(folder / f"{name}.npz") as packed:
            vectors = glosses.unpack(packed["base"], packed["base_scale"])
    return np.resize(vectors, (rows, vectors.shape[1]))


def prepare(vectors: Array, transform: int, first_id: int = 0) -> list[bytes]:
    """Return the COPY bytes that Table.ingest would send."""
    half = vectors.astype(np.float16)
    codes = pybq.Quantizer(vectors.shape[1], transform).encode(half)
    columns = [("int8", first_id + np.arange(len(vectors))), ("bqvec", codes), ("halfvec", half)]
    return list(copy_bytes(columns))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--set", default="wordnet")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()

    vectors = load(arguments.folder, arguments.set, arguments.rows)
    n, dim = vectors.shape
    ids = np.arange(n)
    settings: dict[str, str | int] = {"shared_buffers": "2GB", "max_wal_size": "8GB"}
    with (
        pybq.serve(settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        register_vector(conn)
        known = describe(
            conn,
            data=f"{arguments.set if arguments.folder else 'demo'}, {n:,} x {dim}",
            settings=settings,
            rounds=arguments.rounds,
        )
        tables = {
            name: pybq.Table.create(conn, name, dim, codes=True, transform=transform)
            for name, transform in (("prepared", 1), ("axes", 0), ("rotated", 1), ("first", None))
        }
        conn.execute(f"CREATE TABLE pgvector (id bigint PRIMARY KEY, embedding vector({dim}))")
        prepared = prepare(vectors, 1)

        def copy_prepared() -> None:
            statement = "COPY prepared (id, code, embedding) FROM STDIN WITH (FORMAT binary)"
            with conn.cursor().copy(statement) as copy:
                for chunk in prepared:
                    copy.write(chunk)

        def ingest_first() -> None:
            conn.execute("UPDATE bq_columns SET decided_at = NULL WHERE reason LIKE '%:%'")
            tables["first"].ingest(ids, vectors, progress=False)

        def load_with_pgvector() -> None:
            statement = "COPY pgvector (id, embedding) FROM STDIN WITH (FORMAT BINARY)"
            with conn.cursor().copy(statement) as copy:
                copy.set_types(["int8", "vector"])
                for i in range(n):
                    copy.write_row([i, vectors[i]])

        contenders: dict[str, Callable[[], Any]] = {
            "prepared": copy_prepared,
            "axes": lambda: tables["axes"].ingest(ids, vectors, progress=False),
            "rotated": lambda: tables["rotated"].ingest(ids, vectors, progress=False),
            "first": ingest_first,
            "pgvector": load_with_pgvector,
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(arguments.rounds + 1):
            for name, run in contenders.items():
                conn.execute(f"TRUNCATE {name}".encode())
                conn.execute("CHECKPOINT")
                start = time.perf_counter()
                run()
                if turn > 0:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)

    ratios = {
        name: np.percentile(np.array(seconds["prepared"]) / np.array(taken), [25, 50, 75])
        for name, taken in seconds.items()
    }
    print(f"{'':<10} {'rows/s':>10}   of prepared (quartiles)")
    for name, taken in seconds.items():
        low, middle, high = ratios[name]
        print(f"{name:<10} {n / np.median(taken):>10,.0f}   {middle:.2f} ({low:.2f} to {high:.2f})")
    save(
        arguments.json,
        known={k: str(v) for k, v in known.items()},
        seconds=seconds,
        ratios={name: list(values) for name, values in ratios.items()},
    )
    reached = min(ratios[name][1] for name in ("axes", "rotated"))
    print(f"\ningest reaches {reached:.2f} of prepared bytes, target {TARGET}")
    return 0 if reached >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
