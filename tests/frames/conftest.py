"""Fixtures: a cluster of Spark's in processes of their own; vectors in Parquet files."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shared import SEED, Conn

DIM = 32
ROWS = 4000
FILES = 8


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session with two executors of one core each, every one a JVM with its Python workers."""
    pyspark = pytest.importorskip("pyspark", reason="needs Spark: make test-spark")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("needs Java 17 or later")
    from pyspark.sql import SparkSession

    work = tmp_path_factory.mktemp("spark")
    os.environ |= {
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.local.dir": work,
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": work / "warehouse",
        # each file is a partition, as there are no smaller ones
        "spark.sql.files.openCostInBytes": 1 << 30,
        "spark.sql.execution.arrow.maxRecordsPerBatch": 100,
        # a busy machine is not a dead one
        "spark.network.timeout": "600s",
        "spark.task.maxFailures": 8,
    }
    builder = SparkSession.builder.master("local-cluster[2,1,1024]").appName("pybq")
    for name, value in settings.items():
        builder = builder.config(name, str(value))
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def vectors() -> NDArray[np.float32]:
    found = np.random.default_rng((SEED, 4)).standard_normal((ROWS, DIM), dtype=np.float32)
    return found * np.linspace(0.5, 2, DIM, dtype=np.float32) + np.float32(0.1)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, vectors: NDArray[np.float32]) -> str:
    """Files with their rows: a folder."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("vectors")
    for i, part in enumerate(np.array_split(np.arange(ROWS), FILES)):
        table = pa.table(
            {
                "id": part,
                "embedding": pa.array(list(vectors[part]), pa.list_(pa.float32())),
                "title": [f"title {row}" for row in part],
            }
        )
        parquet.write_table(table, folder / f"{i}.parquet")
    return str(folder)


def assert_written(conn: Conn, vectors: NDArray[np.float32]) -> None:
    """Every row once, with the code that SQL makes of it; statistics as of one pass."""
    import pybq

    table = pybq.Table(conn, "items")
    transform = conn.execute("SELECT transform FROM bq_columns").fetchone()
    assert transform is not None
    count = 0
    for i, code, made in conn.execute(
        "SELECT id, code, bq_encode(v, %s) FROM items"
        " LEFT JOIN unnest(%s::text[]) WITH ORDINALITY AS s(t, i) ON i - 1 = id,"
        " CAST(t AS real[]) AS v ORDER BY id",
        [transform[0], ["{" + ",".join(map(repr, v.tolist())) + "}" for v in vectors]],
    ):
        assert (i, code) == (count, made)
        count += 1
    assert count == len(vectors)
    expected = pybq.Statistics(DIM, normalize=True)
    expected.update(vectors)
    assert_statistics(table.statistics(), expected)


def assert_statistics(found: Any, expected: Any) -> None:
    assert found.count == expected.count
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment", "positive"):
        left, right = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12, err_msg=name)
