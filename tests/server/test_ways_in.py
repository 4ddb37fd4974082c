"""What docs/from-pgvector.md says of each way in: locks, who waits, what is written anew."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from indexlib import connect, explain
from pages import DOCS
from psycopg.errors import LockNotAvailable
from shared import Conn

import pybq

pytestmark = [pytest.mark.autocommit, pytest.mark.usefixtures("bq_pgvector")]

ROWS = 300
GENEROUS = 60.0  # seconds

# How pg_locks calls what the page, as PostgreSQL's manual, writes out.
MODES = {
    "SHARE UPDATE EXCLUSIVE": "ShareUpdateExclusiveLock",
    "SHARE": "ShareLock",
    "ACCESS EXCLUSIVE": "AccessExclusiveLock",
}


def read_table() -> dict[str, list[str]]:
    """Of each way: lock, who waits, table rewritten, HNSW built anew; as the page has it."""
    text = (DOCS / "from-pgvector.md").read_text()
    rows = re.findall(r"^\| (\d)\. .*? \| (.*) \|$", text, re.M)
    return {number: cells.split(" | ") for number, cells in rows}


WAYS = read_table()


@pytest.fixture
def items(conn: Conn) -> Conn:
    """A table of pgvector's with an HNSW index."""
    conn.execute("CREATE TABLE items (id bigint PRIMARY KEY, embedding vector(8))")
    conn.execute(
        f"""INSERT INTO items SELECT i, ARRAY[sin(i), cos(2 * i), sin(3 * i), cos(5 * i),
            sin(7 * i), cos(11 * i), sin(13 * i), cos(17 * i)]::real[]::vector(8)
        FROM generate_series(1, {ROWS}) AS i""".encode()
    )
    conn.execute("CREATE INDEX items_hnsw ON items USING hnsw (embedding vector_cosine_ops)")
    return conn


def files(conn: Conn) -> list[Any]:
    return conn.execute(
        "SELECT pg_relation_filenode('items'), pg_relation_filenode('items_hnsw')"
    ).fetchall()


def locks(conn: Conn, pid: int) -> set[str]:
    """Modes in which a session holds `items`."""
    rows = conn.execute(
        "SELECT mode FROM pg_locks WHERE pid = %s AND relation = 'items'::regclass AND granted",
        [pid],
    )
    return {mode for (mode,) in rows}


def who_waits(dsn: str) -> str:
    """Who cannot get at `items` while somebody else has it."""
    waiting = []
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SET lock_timeout = '200ms'")
        for who, statement in (
            ("readers", "SELECT count(*) FROM items"),
            ("writers", "DELETE FROM items WHERE id = -1"),
        ):
            try:
                other.execute(statement.encode())
            except LockNotAvailable:
                waiting.append(who)
    return {"": "nobody", "writers": "writers", "readers, writers": "all"}[", ".join(waiting)]


def assert_as_said(number: str, mode: str, waiting: str, changed: list[bool]) -> None:
    lock, who, *rewritten = WAYS[number]
    assert (MODES[lock], who) == (mode, waiting)
    assert rewritten == ["yes" if each else "no" for each in changed]


def strongest(modes: set[str]) -> str:
    order = ["AccessShareLock", "RowShareLock", "RowExclusiveLock", *MODES.values()]
    return max(modes, key=order.index)


def observe_in_transaction(conn: Conn, statement: str) -> tuple[str, str, list[bool]]:
    before = files(conn)
    with conn.transaction():
        conn.execute(statement.encode())
        pid = conn.info.backend_pid
        mode = strongest(locks(conn, pid))
        waiting = who_waits(conn.info.dsn)
    after = files(conn)
    return mode, waiting, [x != y for x, y in zip(before[0], after[0], strict=True)]


def observe_concurrently(conn: Conn, make: Callable[[Conn], object]) -> tuple[str, str, list[bool]]:
    """A writer's open transaction holds up who makes an index; look, and let it go on."""
    before = files(conn)
    maker = connect(conn.info.dsn)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            make(maker)
        except BaseException as error:
            failed.append(error)

    with psycopg.connect(conn.info.dsn) as writer:
        writer.execute("DELETE FROM items WHERE id = 1")
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: held_up(conn, maker.info.backend_pid))
        mode = strongest(locks(conn, maker.info.backend_pid))
        waiting = who_waits(conn.info.dsn)
    thread.join(GENEROUS)
    maker.close()
    assert not failed and not thread.is_alive()
    return mode, waiting, [x != y for x, y in zip(before[0], files(conn)[0], strict=True)]


def held_up(conn: Conn, pid: int) -> bool:
    row = conn.execute(
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", [pid]
    ).fetchone()
    return row == (True,)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + GENEROUS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def indexes_of(conn: Conn) -> Iterator[str]:
    for (name,) in conn.execute(
        "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON oid = indexrelid"
        " WHERE indrelid = 'items'::regclass AND indisvalid"
        " AND relam = (SELECT oid FROM pg_am WHERE amname = 'bq')"
    ).fetchall():
        yield name


def test_an_index_made_concurrently_lets_all_go_on(items: Conn) -> None:
    statement = "CREATE INDEX CONCURRENTLY items_bq ON items USING bq (embedding vector_cosine_ops)"
    seen = observe_concurrently(items, lambda conn: conn.execute(statement.encode()))
    assert_as_said("1", *seen)
    assert list(indexes_of(items)) == ["items_bq"]


def test_so_does_an_index_on_an_expression(items: Conn) -> None:
    statement = (
        "CREATE INDEX CONCURRENTLY items_bq ON items"
        " USING bq ((embedding::halfvec(8)) halfvec_cosine_ops)"
    )
    seen = observe_concurrently(items, lambda conn: conn.execute(statement.encode()))
    assert_as_said("2", *seen)
    items.execute("SET enable_seqscan = off")
    q = "'[1, 2, 3, 4, 5, 6, 7, 8]'"
    query = f"SELECT id FROM items ORDER BY embedding::halfvec(8) <=> {q} LIMIT 3"
    assert "Index Scan using items_bq" in explain(items, query)


def test_adopt_lets_all_go_on(items: Conn) -> None:
    seen = observe_concurrently(items, lambda conn: pybq.adopt(conn, "items"))
    assert_as_said("3", *seen)
    assert list(indexes_of(items)) == ["items_embedding_bq"]


def test_a_plain_index_makes_writers_wait(items: Conn) -> None:
    statement = "CREATE INDEX items_bq ON items USING bq (embedding vector_cosine_ops)"
    assert_as_said("4", *observe_in_transaction(items, statement))


def test_a_generated_column_makes_all_wait_and_hnsw_anew(items: Conn) -> None:
    statement = (
        "ALTER TABLE items ADD COLUMN code bqvec(8)"
        " GENERATED ALWAYS AS (bq_encode(embedding::real[], 1)) STORED"
    )
    assert_as_said("5", *observe_in_transaction(items, statement))


def test_a_plain_column_is_added_without_a_rewrite(items: Conn) -> None:
    """Filled by a trigger and by UPDATE in batches; writers of other rows go on."""
    assert_as_said(
        "6", *observe_in_transaction(items, "ALTER TABLE items ADD COLUMN code bqvec(8, 1)")
    )
    items.execute(
        "CREATE TRIGGER bq_encode BEFORE INSERT OR UPDATE OF embedding ON items"
        " FOR EACH ROW EXECUTE FUNCTION bq_encode_trigger('code', 'embedding')"
    )
    fill = "UPDATE items SET code = bq_encode(embedding::real[], 1) WHERE id BETWEEN 1 AND 200"
    mode, waiting, changed = observe_in_transaction(items, fill)
    assert (mode, waiting, changed) == ("RowExclusiveLock", "nobody", [False, False])


def test_who_goes_back_has_hnsw_as_it_was(items: Conn) -> None:
    items.execute("CREATE INDEX items_bq ON items USING bq (embedding vector_cosine_ops)")
    before = files(items)
    items.execute("DROP INDEX CONCURRENTLY items_bq")
    assert files(items) == before
    items.execute("SET enable_seqscan = off")
    query = "SELECT id FROM items ORDER BY embedding <=> '[1, 2, 3, 4, 5, 6, 7, 8]' LIMIT 3"
    assert "Index Scan using items_hnsw" in explain(items, query)


def test_no_way_is_left_unlooked_at() -> None:
    tested = re.findall(r'assert_as_said\(\s*"(\d)"', Path(__file__).read_text())
    assert tested and set(WAYS) == set(tested)
