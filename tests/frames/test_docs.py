"""Every example of docs/encoding.md runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pages import DOCS, NOT_RUN, read_blocks
from shared import Conn

import pybq

from .conftest import ROWS

PAGE = DOCS / "encoding.md"


@pytest.mark.autocommit
@pytest.mark.filterwarnings("ignore")
def test_examples_run(
    spark: Any,
    files: str,
    vectors: NDArray[np.float32],
    conn: Conn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("dask.dataframe")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, "embeddings")
    # Spark's own idea of where it is was made when it started
    read = type(spark.read).parquet
    monkeypatch.setattr(
        type(spark.read), "parquet", lambda reader, path: read(reader, str(tmp_path / path))
    )
    write = type(spark.range(1).write).parquet
    monkeypatch.setattr(
        type(spark.range(1).write),
        "parquet",
        lambda writer, path: write(writer, str(tmp_path / path)),
    )
    names: dict[str, Any] = {"__name__": "__main__", "spark": spark, "dsn": conn.info.dsn}
    blocks = [block for block in read_blocks(PAGE) if not NOT_RUN.match(block.comment)]
    assert {block.language for block in blocks} == {"python", "sql"}
    for block in blocks:
        if block.language == "python":
            exec(compile(block.text, str(PAGE), "exec", dont_inherit=True), names)
            continue
        for statement in block.text.split(";"):
            if statement.strip():
                conn.execute(statement.encode())
    transform = names["decision"].transform
    assert capsys.readouterr().out.splitlines() == [
        str(ROWS), "0", f"{ROWS} {transform}", f"{ROWS} {ROWS}"
    ]  # fmt: skip
    assert pybq.Table(conn, "items").count() == ROWS
    codes = spark.read.parquet("codes").collect()
    made = pybq.Quantizer(vectors.shape[1], transform).encode(vectors)
    assert {row.id: bytes(row.code) for row in codes} == {
        i: code.tobytes() for i, code in enumerate(made)
    }
