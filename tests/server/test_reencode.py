"""Table.reencode: other codes while the table is in use, and after it was interrupted."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from shared import Conn

import pybq
from pybq import TableError
from pybq._tables import reencode

pytestmark = pytest.mark.usefixtures("vector")

N, DIM = 3000, 48


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    scales = np.geomspace(0.1, 3, DIM)
    return (rng.standard_normal((N, DIM)) * scales).astype(np.float32)


@pytest.fixture
def connect(conn: Conn) -> Iterator[Callable[[], Conn]]:
    """Make further connections, which commit by themselves."""
    conn.commit()
    made: list[Conn] = []

    def connect() -> Conn:
        made.append(psycopg.connect(conn.info.dsn, autocommit=True))
        return made[-1]

    yield connect
    for other in made:
        other.close()


@pytest.fixture
def table(conn: Conn, vectors: np.ndarray) -> pybq.Table:
    table = pybq.Table.create(conn, "items", DIM, columns={"note": "text"}, transform=0, codes=True)
    table.ingest(range(N), vectors)
    conn.commit()
    return table


def count_codes(conn: Conn, transform: int) -> tuple[int, int]:
    """Rows, and rows whose code is what their vector gives."""
    row = conn.execute(
        "SELECT count(*), count(*) FILTER (WHERE code = bq_encode(embedding::real[], %s))"
        " FROM items",
        [transform],
    ).fetchone()
    conn.commit()
    assert row is not None
    return row[0], row[1]


def is_clean(conn: Conn) -> bool:
    """Whether nothing of the work is left."""
    left = conn.execute(
        """
        SELECT tgname FROM pg_trigger WHERE tgrelid = 'items'::regclass
        UNION ALL SELECT attname FROM pg_attribute WHERE attrelid = 'items'::regclass
        AND attname LIKE '%next%' AND NOT attisdropped
        UNION ALL SELECT conname FROM pg_constraint WHERE conname LIKE 'bq_reencode%'
        UNION ALL SELECT relname FROM pg_class WHERE relname LIKE 'bq_reencode%'
        UNION ALL SELECT code_column FROM bq_columns
        WHERE next_column IS NOT NULL OR next_transform IS NOT NULL
        """
    ).fetchall()
    conn.commit()
    return left == []


# -- what comes out ---------------------------------------------------------------------


@pytest.mark.parametrize("store", ["halfvec", "vector"])
@pytest.mark.parametrize(("before", "after"), [(0, 7), (7, 0), (1, 2)])
def test_codes_are_those_of_the_stored_vectors(
    conn: Conn, vectors: np.ndarray, store: Any, before: int, after: int
) -> None:
    table = pybq.Table.create(conn, "items", DIM, store=store, transform=before, codes=True)
    table.ingest(range(N), vectors)
    conn.commit()
    assert table.reencode(after) == N
    assert table.status().transform == after
    rows = conn.execute("SELECT code, embedding::real[] FROM items ORDER BY id").fetchall()
    stored = np.array([vector for _, vector in rows], np.float32)
    expected = pybq.Quantizer(DIM, after).encode(stored)
    assert b"".join(code.to_binary() for code, _ in rows) == expected.tobytes()
    assert table.search(vectors[7], k=1)[0].id == 7
    conn.commit()
    assert is_clean(conn)
    assert table.reencode(after) == 0


def test_what_was_there_is_there_after(conn: Conn, table: pybq.Table, vectors: np.ndarray) -> None:
    conn.execute("CREATE INDEX ON items USING bq (code)")
    conn.execute('CREATE INDEX "Second" ON items USING bq (code) WITH (lists = 10)')
    table.create_index(["note"])  # with a filter
    table.create_trigger()
    conn.commit()

    def describe() -> list[Any]:
        found = conn.execute(
            """
            SELECT c.relname, c.reloptions, a.attname, a.attnotnull, i.indisvalid,
                   pg_get_indexdef(c.oid)
            FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = 'items'::regclass ORDER BY 1
            """
        ).fetchall()
        conn.commit()
        return found

    before = describe()
    assert ("Second", ["lists=10"], "code", True, True) in [row[:5] for row in before]
    assert any("USING bq (code, note)" in row[5] for row in before)
    table.reencode(5)
    assert describe() == before
    for name in ("items_code_idx", '"Second"'):
        conn.execute("SELECT bq_index_check(%s::regclass, true)", [name])
    plan = conn.execute(
        "EXPLAIN SELECT id FROM items ORDER BY code <=> bq_query(%s::real[], 5) LIMIT 3",
        [vectors[3].tolist()],
    ).fetchall()
    assert "Index Scan" in str(plan)
    # the trigger goes on with the new transform
    conn.execute("INSERT INTO items (id, embedding) SELECT %s, embedding FROM items LIMIT 1", [N])
    assert count_codes(conn, 5) == (N + 1, N + 1)
    table.reencode(6)
    assert count_codes(conn, 6) == (N + 1, N + 1)


def test_choice_follows_the_data(conn: Conn, table: pybq.Table) -> None:
    drift = table.status().drift
    conn.commit()
    assert drift is not None and drift.better
    assert table.reencode() == N
    status = table.status()
    conn.commit()
    assert status.transform == 1 and status.reason is not None
    assert status.reason.startswith("rotate: predicted")
    assert status.drift is not None and not status.drift.better
    assert status.drift.mean_shift == 0 and status.decided_count == N
    assert table.reencode() == 0
    assert count_codes(conn, 1) == (N, N)


def test_choice_against_the_data_is_told(conn: Conn, table: pybq.Table) -> None:
    table.reencode(7)
    conn.commit()
    table.reencode(0)
    status = table.status()
    assert (status.transform, status.decided_count) == (0, 0)
    assert status.drift is not None and status.drift.better
    assert status.drift.mean_shift is None


def test_codes_of_the_old_transform_are_kept_out(conn: Conn, table: pybq.Table) -> None:
    table.reencode(3)
    conn.commit()
    with pytest.raises(psycopg.errors.CheckViolation, match="code_transform_3"):
        conn.execute(
            "INSERT INTO items (id, embedding, code)"
            " SELECT -1, embedding, bq_encode(embedding::real[], 0) FROM items LIMIT 1"
        )


def test_in_asyncio(conn: Conn, table: pybq.Table, vectors: np.ndarray) -> None:
    async def main() -> tuple[int, int]:
        async with await psycopg.AsyncConnection.connect(conn.info.dsn) as other:
            same = await pybq.AsyncTable.open(other, "items")
            await same.search(vectors[0])
            rows = await same.reencode(4)
            return rows, (await same.search(vectors[9], k=1))[0].id

    assert asyncio.run(main()) == (N, 9)
    assert table.search(vectors[9], k=1)[0].id == 9
    assert count_codes(conn, 4) == (N, N)


def test_rows_without_vectors_stay_without_codes(conn: Conn, table: pybq.Table) -> None:
    conn.execute("ALTER TABLE items ALTER embedding DROP NOT NULL, ALTER code DROP NOT NULL")
    conn.execute("UPDATE items SET embedding = NULL, code = NULL WHERE id < 10")
    conn.commit()
    assert table.reencode(2) == N - 10
    assert count_codes(conn, 2) == (N, N - 10)


def test_codes_without_vectors_are_not_dropped(conn: Conn, table: pybq.Table) -> None:
    conn.execute("ALTER TABLE items ALTER embedding DROP NOT NULL")
    conn.execute("UPDATE items SET embedding = NULL WHERE id = 7")
    conn.commit()
    with pytest.raises(TableError, match="row with id 7 of table 'items' has a code and no vec"):
        table.reencode(2)
    assert table.status().next_transform is None
    assert conn.execute("SELECT code IS NOT NULL FROM items WHERE id = 7").fetchone() == (True,)


# -- while the table is in use ----------------------------------------------------------


def test_searches_and_writers_notice_nothing(
    conn: Conn,
    table: pybq.Table,
    vectors: np.ndarray,
    connect: Callable[[], Conn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reencode, "BATCH_PAGES", 2)
    monkeypatch.setattr(reencode, "VACUUM_PAGES", 32)
    table.create_index()
    conn.commit()
    errors: list[Exception] = []
    done = threading.Event()
    counts = {"search": 0, "ingest": 0, "update": 0}

    def repeat(name: str, step: Callable[[int], None]) -> None:
        try:
            while not done.is_set() or counts[name] < 3:
                step(counts[name])
                counts[name] += 1
        except Exception as error:
            errors.append(error)

    searched, written = pybq.Table(connect(), "items"), pybq.Table(connect(), "items")
    plain = connect()

    def search(i: int) -> None:
        row = 1000 + i % 1000
        (hit,) = searched.search(vectors[row], k=1)
        assert hit.id == row, (hit.id, row)

    def ingest(i: int) -> None:
        first = N + 20 * i
        written.ingest(range(first, first + 20), vectors[:20] + 0.5)

    def update(i: int) -> None:
        plain.execute("UPDATE items SET note = 'seen' WHERE id %% 100 = %s", [i % 100])
        plain.execute(
            # who knows nothing of pybq, but makes codes of the transform that is there
            "UPDATE items SET embedding = v.x, code = bq_encode(v.x::real[], b.transform)"
            " FROM (SELECT embedding AS x FROM items WHERE id = 2500) AS v, bq_columns AS b"
            " WHERE id = %s",
            [i % 900],
        )

    threads = [
        threading.Thread(target=repeat, args=pair)
        for pair in (("search", search), ("ingest", ingest), ("update", update))
    ]
    for thread in threads:
        thread.start()
    try:
        table.reencode(7)
        table.reencode(8)
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert min(counts.values()) > 3, counts
    rows = N + 20 * counts["ingest"]
    assert count_codes(conn, 8) == (rows, rows)
    assert table.status().count == rows
    conn.commit()
    assert is_clean(conn)
    conn.execute("SELECT bq_index_check('items_code_idx', true)")


def test_plain_updates_of_rows_not_yet_encoded(
    conn: Conn,
    table: pybq.Table,
    connect: Callable[[], Conn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An UPDATE between the start and the end is in the new codes, too."""
    fill, other = reencode._fill, connect()

    async def fill_slowly(*arguments: Any) -> int:
        other.execute("UPDATE items SET note = 'early' WHERE id < 100")
        other.execute("UPDATE items SET embedding = (SELECT embedding FROM items WHERE id = 7)")
        rows = await fill(*arguments)
        other.execute(
            "UPDATE items SET embedding = (SELECT embedding FROM items WHERE id = 8),"
            " code = bq_encode((SELECT embedding FROM items WHERE id = 8)::real[], 0)"
            " WHERE id < 50"
        )
        return rows

    monkeypatch.setattr(reencode, "_fill", fill_slowly)
    assert table.reencode(7) == 0  # the trigger has encoded all of them
    assert count_codes(conn, 7) == (N, N)


def test_long_transactions_are_waited_for_and_let_searches_pass(
    conn: Conn,
    table: pybq.Table,
    vectors: np.ndarray,
    connect: Callable[[], Conn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reencode, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(reencode, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(reencode, "LOCK_ATTEMPTS", 3)
    long = connect()
    with long.transaction():
        long.execute("SELECT 1 FROM items LIMIT 1")
        with pytest.raises(TableError, match="always in use by long transactions"):
            table.reencode(7)
        assert pybq.Table(connect(), "items").search(vectors[5], k=1)[0].id == 5
    assert table.reencode(7) == N


# -- interrupted ------------------------------------------------------------------------

SLOWLY = """
import contextlib, sys, time
import psycopg, pybq
from pybq._tables import reencode
reencode.BATCH_PAGES = 2

@contextlib.contextmanager
def slowly(*arguments):
    yield lambda rows: time.sleep(0.02)

reencode.show_progress = slowly
with psycopg.connect(sys.argv[1]) as conn:
    pybq.Table(conn, "items").reencode(7)
"""


def test_killed_in_the_middle_and_called_again(
    conn: Conn, table: pybq.Table, vectors: np.ndarray, connect: Callable[[], Conn]
) -> None:
    table.create_index()
    conn.commit()
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, conn.info.dsn])
    other, filled, deadline = connect(), 0, time.monotonic() + 60
    while filled < N // 10 and time.monotonic() < deadline:
        if table.status().next_transform is not None:
            row = other.execute("SELECT count(code_next) FROM items").fetchone()
            filled = 0 if row is None else row[0]
        conn.commit()
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()

    status = pybq.Table(other, "items").status()
    assert (status.transform, status.next_transform) == (0, 7)
    assert "being encoded anew, with transform 7" in str(status)
    assert "code_next" not in pybq.Table(other, "items").columns
    assert table.search(vectors[11], k=1)[0].id == 11
    table.ingest(range(N, N + 50), vectors[:50])
    conn.commit()
    rows = table.reencode()  # no need to say again which
    assert 0 < rows <= N - filled
    assert count_codes(conn, 7) == (N + 50, N + 50)
    assert is_clean(conn)
    conn.execute("SELECT bq_index_check('items_code_idx', true)")


def test_interrupted_before_the_swap(
    conn: Conn, table: pybq.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.create_index()
    conn.commit()

    async def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reencode, "_swap", fail)
        with pytest.raises(KeyboardInterrupt):
            table.reencode(7)
    assert not conn.autocommit
    # as CREATE INDEX CONCURRENTLY leaves it
    made = conn.execute(
        "UPDATE pg_index SET indisvalid = false FROM pg_class c WHERE c.oid = indexrelid"
        " AND c.relname LIKE 'bq_reencode%' RETURNING indexrelid"
    ).fetchall()
    conn.commit()
    assert len(made) == 1
    assert table.reencode(7) == 0
    row = conn.execute("SELECT 'items_code_idx'::regclass::oid").fetchone()
    assert row is not None and row != made[0]
    assert count_codes(conn, 7) == (N, N)
    assert is_clean(conn)


@pytest.mark.parametrize(("again", "rows"), [(9, N), (0, 0)])
def test_another_transform_begins_anew(
    conn: Conn, table: pybq.Table, monkeypatch: pytest.MonkeyPatch, again: int, rows: int
) -> None:
    async def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reencode, "_swap", fail)
        with pytest.raises(KeyboardInterrupt):
            table.reencode(7)
    assert table.reencode(again) == rows
    assert count_codes(conn, again) == (N, N)
    assert is_clean(conn)


@pytest.mark.parametrize("patience", [0.5, 60])
def test_two_at_once_do_not_wait_for_each_other(
    conn: Conn,
    table: pybq.Table,
    connect: Callable[[], Conn],
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
) -> None:
    """The second waits while the first builds an index, for which nobody may have a snapshot."""
    table.create_index()
    conn.commit()
    second = pybq.Table(connect(), "items")
    build, building, go_on = (
        reencode._build_indexes,
        threading.Event(),
        threading.Event(),
    )

    async def wait_and_build(*arguments: Any) -> None:
        building.set()
        assert go_on.wait(30)
        await build(*arguments)

    monkeypatch.setattr(reencode, "ALONE_SECONDS", patience)
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(reencode, "_build_indexes", wait_and_build)
        first = pool.submit(table.reencode, 7)
        assert building.wait(30)
        later = pool.submit(second.reencode, 7)
        if patience < 1:
            with pytest.raises(TableError, match="being encoded anew by another connection"):
                later.result(30)
            go_on.set()
        else:
            time.sleep(1)  # it waits now
            assert not later.done()
            go_on.set()
            assert later.result(30) == 0
        assert first.result(30) == N
    assert count_codes(conn, 7) == (N, N)
    assert is_clean(conn)


# -- refused ------------------------------------------------------------------------------


def test_what_is_refused(conn: Conn, table: pybq.Table, connect: Callable[[], Conn]) -> None:
    with pytest.raises(ValueError, match="transform between 0 and 65535"):
        table.reencode(65536)
    codes_only = pybq.Table.create(conn, "codes", DIM, store=None, transform=0)
    empty = pybq.Table.create(conn, "empty", DIM, codes=True)
    conn.execute("SELECT 1")
    with pytest.raises(TableError, match="end the open transaction first"):
        table.reencode(7)
    conn.commit()
    with pytest.raises(TableError, match="'codes' keeps codes only"):
        codes_only.reencode(7)
    with pytest.raises(TableError, match="'empty' has no codes yet"):
        empty.reencode(7)
    other = connect()
    other.execute("SELECT pg_advisory_lock(hashtext('pybq.reencode'), 'items'::regclass::oid::int)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reencode, "ALONE_SECONDS", 1)
        with pytest.raises(TableError, match="by another connection"):
            table.reencode(7)
    assert is_clean(conn)
    other.execute("SELECT pg_advisory_unlock_all()")
    conn.execute('CREATE INDEX "Odd" ON items USING bq (code, (id % 2))')
    conn.commit()
    with pytest.raises(TableError, match='more depends on it: index "Odd"; drop that first'):
        table.reencode(7)
    assert is_clean(conn)


def test_a_column_in_the_way_is_named(conn: Conn, table: pybq.Table) -> None:
    conn.execute("ALTER TABLE items ADD code_next int")
    conn.commit()
    with pytest.raises(TableError, match="'code_next' is in the way"):
        pybq.Table(conn, "items").reencode(7)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE VIEW codes AS SELECT code FROM items", "view codes"),
        ("CREATE INDEX by_bytes ON items (code)", "index by_bytes"),
        ("CREATE INDEX few ON items USING bq (code) WHERE id < 100", "index few"),
        ("ALTER TABLE items ADD CHECK (vector_dims(code) > 1)", "constraint items_code_check"),
        ("GRANT SELECT (code) ON items TO pg_monitor", "privileges granted on column code"),
    ],
)
def test_what_depends_on_the_column_is_named(
    conn: Conn, table: pybq.Table, statement: str, named: str
) -> None:
    conn.execute(statement)
    conn.commit()
    with pytest.raises(TableError, match=named):
        table.reencode(7)
    assert is_clean(conn)
    assert count_codes(conn, 0) == (N, N)
