"""Table.create_trigger: codes for rows that are written without pybq."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from shared import Conn

import pybq
from pybq import TableError

DIM = 24
pytestmark = pytest.mark.usefixtures("vector")


def count_stale(conn: Conn, transform: int) -> tuple[int, int]:
    row = conn.execute(
        "SELECT count(*), count(*) FILTER (WHERE code IS DISTINCT FROM"
        " bq_encode(embedding::real[], %s)) FROM items",
        [transform],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("store", ["halfvec", "vector"])
@pytest.mark.parametrize("transform", [0, 3])
def test_codes_follow_plain_writers(
    conn: Conn, rng: np.random.Generator, store: Any, transform: int
) -> None:
    vectors = rng.standard_normal((60, DIM), dtype=np.float32)
    texts = [str(vector.tolist()) for vector in vectors]
    table = pybq.Table.create(conn, "items", DIM, store=store, transform=transform, codes=True)
    table.create_trigger()
    table.ingest(range(20), vectors[:20])
    conn.execute("INSERT INTO items (id, embedding) VALUES (20, %s)", [texts[20]])
    with conn.cursor().copy("COPY items (id, embedding) FROM STDIN") as copy:
        for i in range(21, 40):
            copy.write_row([i, texts[i]])
    conn.execute("UPDATE items SET embedding = %s WHERE id = 5", [texts[50]])
    conn.execute(
        "INSERT INTO items (id, embedding) VALUES (6, %s)"
        " ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding",
        [texts[51]],
    )
    conn.execute(
        f"MERGE INTO items USING (VALUES (7, %s::{store}), (40, %s)) AS s(id, v)"
        " ON items.id = s.id WHEN MATCHED THEN UPDATE SET embedding = s.v"
        " WHEN NOT MATCHED THEN INSERT (id, embedding) VALUES (s.id, s.v)",
        [texts[52], texts[40]],
    )
    assert count_stale(conn, transform) == (41, 0)
    for key, row in ((5, 50), (6, 51), (7, 52), (30, 30), (40, 40)):
        assert table.search(vectors[row], k=1, rerank=None)[0].id == key
    with pytest.raises(psycopg.errors.DataException, match=f"expected {DIM} dimensions"):
        conn.execute("INSERT INTO items (id, embedding) VALUES (99, '[1, 2]')")


@pytest.mark.parametrize("on_conflict", ["update", "skip"])
def test_upserts_of_pybq_go_with_it(conn: Conn, rng: np.random.Generator, on_conflict: Any) -> None:
    vectors = rng.standard_normal((30, DIM), dtype=np.float32)
    table = pybq.Table.create(conn, "items", DIM, transform=2, codes=True)
    table.create_trigger()
    table.ingest(range(20), vectors[:20])
    table.ingest(range(10, 30), -vectors[:20], on_conflict=on_conflict)
    assert count_stale(conn, 2) == (30, 0)
    (hit,) = table.search(vectors[15], k=1)
    assert (hit.id == 15) == (on_conflict == "skip")


def test_before_the_decision_others_cannot_write(conn: Conn, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((500, DIM), dtype=np.float32)
    table = pybq.Table.create(conn, "items", DIM, codes=True)
    table.create_trigger()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        with conn.transaction():
            conn.execute(
                "INSERT INTO items (id, embedding) VALUES (1, %s)", [str(vectors[0].tolist())]
            )
    assert "is not decided yet" in str(caught.value)
    assert caught.value.diag.message_hint is not None
    table.ingest(range(500), vectors)  # whose COPY comes after the decision
    transform = table.status().transform
    assert transform is not None
    conn.execute("INSERT INTO items (id, embedding) VALUES (500, %s)", [str(vectors[0].tolist())])
    assert count_stale(conn, transform) == (501, 0)


def test_tables_of_codes_only_are_refused(conn: Conn) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=None)
    with pytest.raises(TableError, match="'items' keeps codes only"):
        table.create_trigger()
