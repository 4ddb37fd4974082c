"""Rows per second and core of pybq.spark.encode, beside Quantizer.encode alone on the same rows.

    python benchmarks/encode.py                    # 1,000,000 x 384, on one core
    python benchmarks/encode.py --rows 10000000    # 15 GB of Parquet, twice
    python benchmarks/encode.py --cores 2 --json encode.json

    alone      Quantizer.encode of rows in memory, by as many threads
    pyarrow    one process that reads the arrays from Parquet by pyarrow, and encodes: no Spark
    arrays     Spark reads array<float> from Parquet, encodes, and counts the codes' bytes
    binary     the same of a column of binary

Rows are made on the fly, float32, seeded, and written to Parquet once, uncompressed, in files of
50,000. All take turns, round by round; ratios are taken within a round. Target: Spark reaches 0.5
of alone. The time of Spark's own start is not in it, nor the first round.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import save
from pyarrow import parquet

import pybq
import pybq.spark
from pybq._loading.partitions import encode_batches

SEED = 20261121
FILE_ROWS = 50_000
TARGET = 0.5


def make_rows(number: int, rows: int, dim: int) -> Any:
    """Rows of one file, shape (rows, dim): of norm 1, coordinates of falling variance."""
    vectors = np.random.default_rng((SEED, number)).standard_normal((rows, dim), np.float32)
    vectors *= np.linspace(1.5, 0.5, dim, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_files(folder: Path, rows: int, dim: int) -> None:
    for kind in ("arrays", "binary"):
        (folder / kind).mkdir()
    for number, first in enumerate(range(0, rows, FILE_ROWS)):
        n = min(FILE_ROWS, rows - first)
        vectors = make_rows(number, n, dim)
        ids = pa.array(np.arange(first, first + n))
        flat = pa.array(vectors.ravel())
        places = pa.array(np.arange(n + 1, dtype=np.int32) * dim)
        lists = pa.ListArray.from_arrays(places, flat)
        strings = pa.array([row.tobytes() for row in vectors], pa.binary())
        for kind, column in (("arrays", lists), ("binary", strings)):
            parquet.write_table(
                pa.table({"id": ids, "embedding": column}),
                folder / kind / f"{number:05}.parquet",
                compression="none",
                use_dictionary=False,
                row_group_size=10_000,
            )


def open_session(cores: int, folder: Path) -> Any:
    import pyspark
    from pyspark.sql import SparkSession

    os.environ |= {
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    builder = SparkSession.builder.master(f"local[{cores}]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.memory", "3g").config("spark.local.dir", str(folder))
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def cpu_seconds() -> float:
    """Of this process, and of all below it, whether they live or not; Linux only."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        stats[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    ours = {os.getpid()}
    while more := {pid for pid, (parent, _) in stats.items() if parent in ours} - ours:
        ours |= more
    return sum(stats[pid][1] for pid in ours) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transform", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the rows; else a temporary one")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    rows, dim, cores = arguments.rows, arguments.dim, arguments.cores

    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    import pyspark

    known = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, kernel {pybq.simd()}",
        "load": f"{os.getloadavg()[0]:.2f} before",
        "versions": f"Spark {pyspark.__version__}, pyarrow {pa.__version__}, commit {commit}",
        "data": f"{rows:,} x {dim}, seed {SEED}, transform {arguments.transform}",
        "disk": f"{8 * rows * dim / 1e9:.1f} GB, {cores} cores used, {arguments.rounds} rounds",
    }
    for name, text in known.items():
        print(f"{name + ':':<12}{text}", flush=True)

    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    try:
        write_files(folder, rows, dim)
        session = open_session(cores, folder)
        quantizer = pybq.Quantizer(dim, arguments.transform, threads=cores)
        held = make_rows(0, min(rows, FILE_ROWS), dim)

        def encode_alone() -> None:
            for _ in range(0, rows, len(held)):
                quantizer.encode(held)

        def read_by_pyarrow() -> None:
            for path in sorted((folder / "arrays").iterdir()):
                with parquet.ParquetFile(path) as file:
                    batches = file.iter_batches(10_000, columns=["embedding"], use_threads=False)
                    for _ in encode_batches(
                        batches, dim, arguments.transform, "rms", "embedding", [], "code"
                    ):
                        pass

        def encode_by_spark(kind: str) -> None:
            frame = session.read.parquet(str(folder / kind)).select("embedding")
            codes = pybq.spark.encode(frame, quantizer)
            total = codes.selectExpr("sum(length(code))").collect()[0][0]
            assert total == rows * quantizer.nbytes

        contenders: dict[str, Callable[[], None]] = {
            "alone": encode_alone,
            "pyarrow": read_by_pyarrow,
            "arrays": lambda: encode_by_spark("arrays"),
            "binary": lambda: encode_by_spark("binary"),
        }
        for turn in range(arguments.rounds + 1):
            for name, run in contenders.items():
                used, start = cpu_seconds(), time.perf_counter()
                run()
                if turn > 0:  # the first round warms up
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                    cpu.setdefault(name, []).append(cpu_seconds() - used)
        session.stop()
    finally:
        shutil.rmtree(folder)

    print(f"\n{'':<10}{'rows/s and core':>16}{'us of CPU a row':>18}   of alone (quartiles)")
    ratios = {
        name: np.percentile(np.array(seconds["alone"]) / np.array(taken), [25, 50, 75])
        for name, taken in seconds.items()
    }
    for name, taken in seconds.items():
        low, middle, high = ratios[name]
        speed, busy = rows / np.median(taken) / cores, np.median(cpu[name]) / rows * 1e6
        quartiles = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"{name:<10}{speed:>16,.0f}{busy:>18.2f}   {quartiles}")
    save(arguments.json, known=known, seconds=seconds, cpu=cpu)
    reached = max(ratios[name][1] for name in ("arrays", "binary"))
    print(f"\nSpark reaches {reached:.2f} of Quantizer.encode, target {TARGET}")
    return 0 if reached >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
