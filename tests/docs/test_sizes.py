"""Bytes of a row, as docs/operating.md has them: rows are written, and files looked at."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pages import DOCS
from shared import Conn

import pybq

ROWS = 20_000
SAID = {
    int(dim.replace(",", "")): (float(table.replace(",", "")), float(index))
    for dim, table, index in re.findall(
        r"^\| ([\d,]+) \| ([\d,]+) \| (\d+) \|", (DOCS / "operating.md").read_text(), re.M
    )
}


@pytest.mark.autocommit
@pytest.mark.parametrize("dim", SAID)
def test_bytes_of_a_row(conn: Conn, bq_pgvector: None, rng: np.random.Generator, dim: int) -> None:
    vectors = rng.standard_normal((ROWS, dim), dtype=np.float32)
    table = pybq.Table.create(conn, "items", dim=dim)
    table.ingest(range(ROWS), vectors)
    table.create_index()
    row = conn.execute(
        """SELECT pg_relation_size('items')
            + coalesce(pg_relation_size(nullif(reltoastrelid, 0)), 0)
            + coalesce((SELECT sum(pg_relation_size(indexrelid)) FROM pg_index
                        WHERE indrelid = nullif(reltoastrelid, 0)), 0)
        FROM pg_class WHERE oid = 'items'::regclass"""
    ).fetchone()
    (index,) = table.status().indexes
    assert row is not None
    assert float(row[0]) / ROWS == pytest.approx(SAID[dim][0], rel=0.03)
    # of fewer rows, lists and directory weigh more
    assert index.nbytes / ROWS == pytest.approx(SAID[dim][1], rel=0.2)


def test_the_page_has_sizes() -> None:
    assert len(SAID) >= 5
