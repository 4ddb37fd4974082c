"""AsyncTable: what Table does, without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from shared import Conn

import pybq
from pybq import ExtensionMissingError, RowError, TableError
from pybq._choice.statistics import Statistics
from pybq._loading import ingest
from pybq._loading.encode import ChunkEncoder

AsyncConn = psycopg.AsyncConnection[Any]
Run = Callable[..., Any]


@pytest.fixture
def store(conn: Conn) -> Any:
    """What tables keep beside the codes: vectors, if the server has pgvector."""
    found = conn.execute("SELECT to_regtype('halfvec')::text").fetchone()
    conn.commit()
    return None if found is None else found[0]


@pytest.fixture
def run(conn: Conn) -> Run:
    """Run a coroutine function on a new connection to the test's database."""

    def run(work: Callable[[AsyncConn], Awaitable[Any]], **options: Any) -> Any:
        async def main() -> Any:
            async with await psycopg.AsyncConnection.connect(
                conn.info.dsn, password=conn.info.password, **options
            ) as mine:
                return await work(mine)

        return asyncio.run(main())

    return run


def test_both_kinds_of_table_do_the_same(
    conn: Conn, run: Run, lsa: tuple[np.ndarray, np.ndarray], store: Any
) -> None:
    base, queries = lsa
    columns = {"title": "text"}
    titles = {"title": [f"title {i}" for i in range(len(base))]}

    async def work(mine: AsyncConn) -> Any:
        table = await pybq.AsyncTable.create(
            mine, "a", 256, store=store, columns=columns, codes=True
        )
        assert await table.search(queries[0]) == []
        assert await table.ingest(range(len(base)), base, titles) == len(base)
        assert mine.info.transaction_status == TransactionStatus.IDLE
        await table.create_index()
        hits = await table.search(queries, k=5, columns=["title"])
        alone = [await table.search(query, 5, columns=["title"]) for query in queries[:3]]
        assert alone == hits[:3]
        assert mine.info.transaction_status == TransactionStatus.IDLE
        return hits, await table.status(), await table.statistics()

    hits, status, statistics = run(work)
    table = pybq.Table.create(conn, "b", 256, store=store, columns=columns, codes=True)
    table.ingest(range(len(base)), base, titles)
    table.create_index()
    assert table.search(queries, k=5, columns=["title"]) == hits
    same = table.status()
    assert (same.count, same.transform, same.reason) == (
        status.count,
        status.transform,
        status.reason,
    )
    assert table.statistics().to_row() == statistics.to_row()
    codes = [
        conn.execute(f"SELECT string_agg(code::text, ' ' ORDER BY id) FROM {name}".encode())
        .fetchone()
        for name in ("a", "b")
    ]  # fmt: skip
    assert codes[0] == codes[1]


def test_open_creates_then_opens_and_checks(run: Run, store: Any) -> None:
    async def work(mine: AsyncConn) -> None:
        with pytest.raises(TableError, match="no table 'items'; give dim to create it"):
            await pybq.AsyncTable.open(mine, "items")
        table = await pybq.AsyncTable.open(
            mine, "items", 24, "l2", store=store, columns={"n": "int"}
        )
        again = await pybq.AsyncTable.open(mine, "items")
        for one in (table, again):
            assert (one.name, one.dim, one.metric, one.store) == ("items", 24, "l2", store)
            assert (one.key, one.code_column) == (("id",), None if store else "code")
            assert one.source_column == (None if store is None else "embedding")
            assert dict(one.columns) == {"n": "int4"}
            assert one.connection is mine
        with pytest.raises(TableError, match="table 'items' has dim 24, expected 25"):
            await pybq.AsyncTable.open(mine, "items", 25)
        with pytest.raises(psycopg.errors.DuplicateTable):
            await pybq.AsyncTable.create(mine, "items", 24, store=None)

    run(work)


def test_the_wrong_kind_of_connection_is_named(conn: Conn, run: Run) -> None:
    async def work(mine: AsyncConn) -> None:
        with pytest.raises(TypeError, match="expected a psycopg.Connection, got AsyncConnection"):
            pybq.Table(mine, "items", 24)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected a psycopg.AsyncConnection, got Connection"):
            await pybq.AsyncTable.open(conn, "items", 24)  # type: ignore[arg-type]

    run(work)


def test_bad_rows_are_named_and_nothing_is_written(run: Run) -> None:
    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(mine, "items", 24, store=None)
        vectors = np.ones((50_000, 24), np.float32)
        vectors[49_999, 3] = np.nan
        with pytest.raises(RowError, match=r"row 49999 \(id 49999\)"):
            await table.ingest(range(50_000), vectors)
        assert (await table.status()).count == 0
        assert mine.info.transaction_status == TransactionStatus.IDLE

    run(work)


def test_a_missing_extension_is_named(run: Run, conn: Conn) -> None:
    conn.execute("DROP EXTENSION bq CASCADE")
    conn.commit()

    async def work(mine: AsyncConn) -> None:
        for make in (pybq.AsyncTable.open, pybq.AsyncTable.create):
            with pytest.raises(ExtensionMissingError, match="run CREATE EXTENSION bq"):
                await make(mine, "items", 24, store=None)

    run(work)


def test_the_event_loop_stays_free_during_ingest(
    run: Run, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision, each chunk and the statistics are held up until the loop has had a turn."""
    vectors = rng.standard_normal((3000, 256), dtype=np.float32)
    turn = threading.Event()

    def hold_up(function: Callable[..., Any]) -> Callable[..., Any]:
        def held_up(*arguments: Any) -> Any:
            turn.clear()
            assert turn.wait(20), "the event loop is blocked"
            return function(*arguments)

        return held_up

    monkeypatch.setattr(ingest, "take_sample", hold_up(ingest.take_sample))
    monkeypatch.setattr(ChunkEncoder, "encode", hold_up(ChunkEncoder.encode))
    monkeypatch.setattr(Statistics, "update", hold_up(Statistics.update))

    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(mine, "items", 256, store=None)
        for first, written in ((0, 3000), (1000, 1000)):
            keys = range(first, first + 3000)
            ingesting = asyncio.create_task(table.ingest(keys, vectors, on_conflict="skip"))
            while not ingesting.done():
                turn.set()
                await asyncio.sleep(0.001)
            assert await ingesting == written

    run(work)


@pytest.mark.parametrize("autocommit", [False, True])
def test_tasks_may_share_a_connection(
    run: Run, lsa: tuple[np.ndarray, np.ndarray], autocommit: bool
) -> None:
    base, queries = lsa

    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(mine, "items", 256, store=None)
        await table.ingest(range(1000), base[:1000])
        other = await pybq.AsyncTable.create(mine, "others", 256, store=None)
        _, _, *found = await asyncio.gather(
            other.ingest(range(2000), base),
            table.ingest(range(1000, 2000), base[1000:]),
            *[table.search(query) for query in queries],
            *[other.search(query) for query in queries],
        )
        together = await table.search(queries)
        assert found[: len(queries)] == together
        assert (await table.status()).count == (await other.status()).count == 2000
        assert mine.info.transaction_status == TransactionStatus.IDLE

    run(work, autocommit=autocommit)


def test_a_cancelled_ingest_writes_nothing_and_leaves_the_table_usable(
    run: Run, rng: np.random.Generator
) -> None:
    vectors = rng.standard_normal((100_000, 64), dtype=np.float32)

    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(mine, "items", 64, store=None, transform=0)
        ingesting = asyncio.create_task(table.ingest(range(100_000), vectors))
        waiting = asyncio.create_task(table.status())
        await asyncio.sleep(0.02)
        ingesting.cancel()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ingesting
        assert (await table.status()).count == 0
        assert await table.ingest(range(10), vectors[:10]) == 10
        assert len(await table.search(vectors[0])) == 10

    run(work)


@pytest.mark.once
def test_cancelled_while_copy_begins(
    conn: Conn, run: Run, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection was left in COPY, and of no more use."""
    vectors = rng.standard_normal((10, 64), dtype=np.float32)
    copy = psycopg.AsyncCursor.copy

    async def work(mine: AsyncConn) -> None:
        begun = asyncio.Event()

        def copy_and_tell(*arguments: Any) -> Any:
            begun.set()
            return copy(*arguments)

        monkeypatch.setattr(psycopg.AsyncCursor, "copy", copy_and_tell)
        table = await pybq.AsyncTable.create(mine, "items", 64, store=None, transform=0)
        for locked in [False] * 5 + [True]:
            begun.clear()
            if locked:  # by whom COPY is kept waiting
                conn.execute("LOCK TABLE items IN SHARE MODE")
            ingesting = asyncio.create_task(table.ingest(range(10), vectors))
            if locked:
                await asyncio.sleep(0.01)
            else:
                await begun.wait()
            ingesting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ingesting
            assert mine.info.transaction_status == TransactionStatus.IDLE
        conn.rollback()
        assert await table.ingest(range(10), vectors) == 10
        assert len(await table.search(vectors[0])) == 10

    run(work)


@pytest.mark.once
def test_cancelled_while_it_commits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection was left in a transaction that had failed."""

    @asynccontextmanager
    async def begin(mine: AsyncConn) -> AsyncIterator[None]:
        await mine.execute("BEGIN")
        yield
        # what a COMMIT leaves that the server cancels before it has begun
        with pytest.raises(psycopg.errors.DivisionByZero):
            await mine.execute("SELECT 1 / 0")
        raise asyncio.CancelledError

    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(mine, "items", 64, store=None, transform=0)
        with monkeypatch.context() as patch:
            patch.setattr(mine, "transaction", lambda **_: begin(mine))
            with pytest.raises(asyncio.CancelledError):
                await table.search([1] * 64, probes=3)
        assert mine.info.transaction_status == TransactionStatus.IDLE
        assert await table.search([1] * 64, probes=3) == []

    run(work, autocommit=True)


def test_an_open_transaction_is_joined(run: Run, lsa: tuple[np.ndarray, np.ndarray]) -> None:
    base, queries = lsa

    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(mine, "items", 256, store=None)
        async with mine.transaction(force_rollback=True):
            await table.ingest(range(len(base)), base)
            assert len(await table.search(queries[0])) == 10
        assert (await table.status()).count == 0

    run(work)


@pytest.mark.usefixtures("vector")
def test_conditions_frames_and_recall(run: Run, lsa: tuple[np.ndarray, np.ndarray]) -> None:
    base, queries = lsa

    async def work(mine: AsyncConn) -> None:
        table = await pybq.AsyncTable.create(
            mine, "items", 256, columns={"price": "int"}, codes=True
        )
        with pytest.raises(TableError, match="no rows to measure recall on"):
            await table.calibrate()
        await table.ingest(range(2000), base, {"price": np.arange(2000) % 10})
        ids, _ = await table.search(
            queries, where="price < %(most)s", parameters={"most": 2}, output="numpy"
        )
        assert ids.shape == (len(queries), 10)
        assert set((ids % 10).ravel()) == {0, 1}
        rerank, probes = await table.calibrate(0.98)
        assert rerank >= 1 and probes is None
        found = await table.search(queries, recall=0.98)
        assert found == await table.search(queries, rerank=rerank)
        with pytest.raises(ValueError, match="expected k of at least 1"):
            await table.search(queries, k=0)
        with pytest.raises(psycopg.errors.UndefinedColumn):
            await table.search(queries, where="nope = 1")
        assert mine.info.transaction_status == TransactionStatus.IDLE
        assert await table.search(queries, recall=0.98) == found

    run(work)
