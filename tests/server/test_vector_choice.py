"""What the build of an index on vectors learns of them: axes or rotation, statistics, drift."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import psycopg
import pytest
from indexlib import (
    COSINE,
    Column,
    Places,
    check,
    connect,
    corners,
    create,
    create_index,
    damage,
    each_metric,
    info,
    insert,
    random_vectors,
    sparse,
)
from shared import Conn, Vectors

import pybq
from pybq._choice.probe import searched
from pybq._choice.statistics import Statistics

pytestmark = [pytest.mark.autocommit, pytest.mark.usefixtures("bq_pgvector")]


# -- how the choice is made --------------------------------------------------------------------


def far_from_zero(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """The axes are clearly better (as tests/unit/test_strategy.py has it)."""
    return cast(Vectors, (rng.standard_normal((n, dim)) + 3).astype(np.float32))


def only_few_matter(rng: np.random.Generator, n: int, dim: int) -> Vectors:
    """Rotation is clearly better: a few coordinates have nearly all of the variance."""
    return random_vectors(rng, n, dim) * np.where(np.arange(dim) % 16, 0.1, 1).astype(np.float32)


@pytest.mark.parametrize(
    "make, transform",
    [(corners, 0), (far_from_zero, 0), (sparse, 1), (only_few_matter, 1), (random_vectors, 1)],
)
def test_transform_suits_the_rows(
    conn: Conn, rng: np.random.Generator, make: Any, transform: int
) -> None:
    """The better side by what it finds; what is as good either way is rotated."""
    create(conn, make(rng, 1200, 256).astype(np.float32), column=COSINE)
    create_index(conn, COSINE, "recall = 0.98")
    assert info(conn, "items_embedding")["transform"] == transform
    for forced in (0, 1, 65535):
        conn.execute(cast(Any, f"ALTER INDEX items_embedding SET (transform = {forced})"))
        conn.execute("REINDEX INDEX items_embedding")
        assert info(conn, "items_embedding")["transform"] == forced
        check(conn, "items_embedding")


def test_few_rows_are_rotated(conn: Conn, rng: np.random.Generator) -> None:
    """Fewer than 100 tell nothing; also where none are left of many."""
    create(conn, corners(rng, 99, 64), column=COSINE)
    create_index(conn, COSINE)
    assert info(conn, "items_embedding")["transform"] == 1
    conn.execute("TRUNCATE items")
    conn.execute("REINDEX INDEX items_embedding")
    assert info(conn, "items_embedding")["transform"] == 1
    check(conn, "items_embedding")


# -- statistics that the choice was made from, and drift -----------------------------------------


def index_statistics(conn: Conn, index: str = "items_embedding") -> Statistics | None:
    row = conn.execute("SELECT (s).* FROM bq_index_statistics(%s) AS s", (index,)).fetchone()
    assert row is not None
    return None if row[0] is None else Statistics.from_row(row)


@each_metric
def test_index_keeps_statistics(conn: Conn, rng: np.random.Generator, column: Column) -> None:
    """Those of its sample, here all rows but zero vectors: by cosine, of vectors of norm 1."""
    vectors = random_vectors(rng, 1000, 150) * np.linspace(0.2, 2, 150).astype(np.float32)
    vectors[7] = 0
    create(conn, vectors, column=column)
    create_index(conn, column)
    check(conn, column.index)
    kept = index_statistics(conn, column.index)
    assert kept is not None
    cosine = "cosine" in column.opclass
    wanted = Statistics(150, normalize=cosine)
    wanted.update(np.delete(vectors, 7, axis=0))
    assert kept.count == wanted.count == 999
    for name in ("mean", "m2", "code_mean", "code_m2", "comoment", "positive"):
        a, b = getattr(kept, name), getattr(wanted, name)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert kept.searches == 50
    found = searched(kept, "inner_product" if "ip" in column.opclass else "cosine")
    assert found is not None
    told = info(conn, column.index)["choice"]
    assert told == (
        f"rotation: of the ten nearest among {kept.count} rows, codes on the axes find "
        f"{found.recall_axis:.3f}, rotated {found.recall_rotate:.3f}"
    )
    assert found.recall_rotate > found.recall_axis


def test_statistics_live_on_pages_of_their_own(conn: Conn, rng: np.random.Generator) -> None:
    """Also across pages, after a rebuild, and with rows that come and go."""
    create(conn, random_vectors(rng, 300, 2000), column=COSINE)
    create_index(conn, COSINE, "lists = 4")
    before = index_statistics(conn)
    assert before is not None and before.count == 300
    insert(conn, random_vectors(rng, 300, 2000), first=300, column=COSINE)
    conn.execute("DELETE FROM items WHERE id % 2 = 0")
    conn.execute("VACUUM items")
    check(conn, "items_embedding")
    after = index_statistics(conn)
    assert after is not None and after.to_row() == before.to_row()
    conn.execute("REINDEX INDEX items_embedding")
    check(conn, "items_embedding")
    rebuilt = index_statistics(conn)
    assert rebuilt is not None and rebuilt.count == 300 and rebuilt.to_row() != before.to_row()


def test_choice_that_was_not_measured_is_told(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 50, 32), column=COSINE)
    create_index(conn, COSINE)
    assert info(conn, "items_embedding")["choice"] == "rotation: there were too few rows to measure"
    few = index_statistics(conn)
    assert few is not None and (few.count, few.searches) == (50, 0)
    conn.execute("ALTER INDEX items_embedding SET (transform = 0)")
    conn.execute("REINDEX INDEX items_embedding")
    assert info(conn, "items_embedding")["choice"] == "axes: as the option transform says"
    assert index_statistics(conn) is None
    conn.execute("TRUNCATE items")
    conn.execute("ALTER INDEX items_embedding RESET (transform)")
    conn.execute("REINDEX INDEX items_embedding")
    assert index_statistics(conn) is None
    check(conn, "items_embedding")


@pytest.mark.parametrize(
    "before, after, better",
    [(corners, only_few_matter, "a rotation"), (only_few_matter, corners, "the original axes")],
)
def test_drift_is_hinted(
    conn: Conn, rng: np.random.Generator, before: Any, after: Any, better: str
) -> None:
    """Rows of the same kind are no drift; where the other choice is better, REINDEX makes it."""
    create(conn, before(rng, 2000, 128), column=COSINE)
    create_index(conn, COSINE)
    transform = info(conn, "items_embedding")["transform"]
    assert info(conn, "items_embedding")["hint"] is None
    insert(conn, before(rng, 2000, 128), first=2000, column=COSINE)
    assert info(conn, "items_embedding")["hint"] is None
    conn.execute("DELETE FROM items WHERE id >= 1000")
    insert(conn, after(rng, 4000, 128), first=5000, column=COSINE)
    hint = info(conn, "items_embedding")["hint"]
    assert hint.startswith(f"REINDEX: {better} would now be better; of the ten nearest among ")
    conn.execute("REINDEX INDEX items_embedding")
    facts = info(conn, "items_embedding")
    assert facts["transform"] == 1 - transform
    assert facts["hint"] is None
    # who asked for a transform is not advised against it
    conn.execute(f"ALTER INDEX items_embedding SET (transform = {transform})")
    conn.execute("REINDEX INDEX items_embedding")
    assert info(conn, "items_embedding")["hint"] is None


def test_few_rows_are_no_drift(conn: Conn) -> None:
    """Rows of no kind, of which the axes find more by chance, in an index made before them."""
    create(conn, np.empty((0, 64), np.float32), nulls=0, column=COSINE)
    create_index(conn, COSINE)
    few = np.random.default_rng(1).standard_normal((300, 64)).round(3).astype(np.float32)
    insert(conn, few, column=COSINE)
    assert info(conn, "items_embedding")["hint"] is None


def test_drift_is_looked_for_in_what_a_query_sees(conn: Conn, rng: np.random.Generator) -> None:
    """Not in rows that another transaction is writing; and nobody is warned of them."""
    create(conn, corners(rng, 1000, 64), column=COSINE)
    create_index(conn, COSINE)
    notices: list[str] = []
    conn.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    with connect(conn.info.dsn) as other, other.transaction():
        insert(other, only_few_matter(rng, 4000, 64), first=1000, column=COSINE)
        assert info(conn, "items_embedding")["hint"] is None
    assert info(conn, "items_embedding")["hint"] is not None
    assert notices == []


def test_statistics_are_for_who_may_read_the_rows(conn: Conn, rng: np.random.Generator) -> None:
    create(conn, random_vectors(rng, 200, 16), column=COSINE)
    create_index(conn, COSINE)
    conn.execute("DROP ROLE IF EXISTS reader")
    conn.execute("CREATE ROLE reader")
    question = "SELECT (bq_index_statistics('items_embedding')).count"
    try:
        conn.execute("SET ROLE reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            conn.execute(question)
        conn.execute("RESET ROLE")
        conn.execute("GRANT SELECT ON items TO reader")
        conn.execute("SET ROLE reader")
        assert conn.execute(question).fetchone() == (200,)
        conn.execute("RESET ROLE")
        conn.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
        conn.execute("SET ROLE reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row security hides"):
            conn.execute(question)
    finally:
        conn.execute("RESET ROLE")
        conn.execute("DROP OWNED BY reader")
        conn.execute("DROP ROLE reader")


def test_damaged_statistics_are_found(own_server: pybq.Server, rng: np.random.Generator) -> None:
    with connect(own_server.dsn) as conn:
        for extension in ("vector", "bq", "bq_pgvector"):
            conn.execute(cast(Any, f"CREATE EXTENSION IF NOT EXISTS {extension}"))
        create(conn, random_vectors(rng, 500, 300), column=COSINE)
        create_index(conn, COSINE)
    sample_rows = Places(300, 1).meta("choice")[1] + 4
    for blkno, offset, data, message in (
        (1, 24, b"\0\0\0\0\0\0\xf8\x7f", "no 500 rows have the statistics of its sample"),
        (2, 8184, b"\3", "of one kind at its start, of another at its end"),
        (0, sample_rows, b"\0\0\0\0", "data begin on page 3 after 0 pages of statistics"),
        (0, sample_rows - 4, b"\x09", "for reason 9"),
    ):
        with connect(own_server.dsn) as conn:
            conn.execute("REINDEX INDEX items_embedding")
            check(conn, "items_embedding")
        damage(own_server, ("items_embedding", blkno, offset, data))
        with connect(own_server.dsn) as conn:
            with pytest.raises(psycopg.errors.IndexCorrupted, match=message):
                check(conn, "items_embedding")
