"""Loading sources of any size: batches in transactions of their own, resumable, in parallel."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias, TypedDict

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import BaseConnection
from psycopg.rows import tuple_row

from pybq._catalog import registry
from pybq._catalog.database import BlockingDatabase, Database, Row, run
from pybq._catalog.layout import Layout
from pybq._catalog.sample import SAMPLE_ROWS
from pybq._codes.arrays import as_vectors
from pybq._loading.ingest import (
    OnConflict,
    check_columns,
    check_keys,
    decide,
    write_rows,
)
from pybq._loading.progress import check_progress, show_progress
from pybq._loading.source import BATCH_NBYTES, Batch, Source
from pybq._loading.sources import open_source
from pybq.errors import LoadError, RowError, TableError

# What SET has changed in a session, in an order in which another one may set it: the roles, which
# pg_settings does not show, at last.
SESSION = """
    SELECT name, setting FROM (
        SELECT 1 AS place, name, current_setting(name) AS setting FROM pg_settings
        WHERE source = 'session' AND name NOT IN
        ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')
        UNION ALL SELECT 2, 'session_authorization', session_user
        UNION ALL SELECT 3, 'role', current_setting('role')
    ) AS settings ORDER BY place
"""


class LoadOptions(TypedDict, total=False):
    """How a source is written; see `Table.load`."""

    columns: Sequence[str] | None
    vector_column: str | None
    id_column: str | None
    first_id: int | None
    on_conflict: OnConflict
    resume: bool
    name: str | None
    connections: int
    batch_rows: int | None
    progress: bool | None


@dataclass(frozen=True, slots=True)
class Task:
    """What the batches of one load have in common."""

    layout: Layout
    sample: Callable[[], NDArray[np.float32]]  # for the decision
    source: str
    batch_rows: int
    fingerprint: str
    on_conflict: OnConflict
    resume: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A batch, its number and the number of its first row."""

    number: int
    first: int
    batch: Batch


class _SourceFailed(Exception):
    """The source raised the `__cause__` instead of row `first`."""

    def __init__(self, first: int) -> None:
        self.first = first


Written: TypeAlias = AsyncGenerator[tuple[Part, int], None]


async def load(
    db: Database,
    layout: Layout,
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    vector_column: str | None = None,
    id_column: str | None = None,
    first_id: int | None = 0,
    on_conflict: OnConflict = "error",
    resume: bool = False,
    name: str | None = None,
    connections: int = 1,
    batch_rows: int | None = None,
    progress: bool | None = None,
) -> int:
    """Write a source in batches, as `Table.load` promises."""
    opened = await db.compute(open_source, source, vector_column, id_column)
    if opened.dim != layout.dim:
        raise ValueError(f"{opened.name}: expected {layout.dim} dimensions, got {opened.dim}")
    if connections < 1 or (batch_rows is not None and batch_rows < 1):
        raise ValueError("expected connections and batch_rows of at least 1")
    if db.in_transaction and (resume or connections > 1):
        raise TableError(
            "resume and connections need transactions of their own, but one is open; commit first"
        )
    named = name or (os.path.abspath(source) if isinstance(source, (str, os.PathLike)) else "")
    if resume and not named:
        raise ValueError("to resume, give the source a name that it will have again")
    check_progress(progress)
    # a number is no key of several columns
    first_key = first_id if layout.has_key and len(layout.key) == 1 else None
    check_keys(layout, opened.has_ids or first_key is not None, on_conflict)
    wanted = _choose_columns(layout, opened, columns)
    if opened.rows == 0:  # nothing to decide from
        return 0
    batch_rows = batch_rows or max(1, BATCH_NBYTES // (4 * layout.dim))

    sample = partial(opened.sample, SAMPLE_ROWS)
    carried = ", ".join(sorted(wanted)) or "none"
    fingerprint = f"{opened.fingerprint}, columns: {carried}, keys from {first_id}"
    task = Task(layout, sample, named, batch_rows, fingerprint, on_conflict, resume)
    # The decision first, in a transaction of its own: then nobody waits for anybody.
    async with db.transaction():
        await decide(db, layout, sample)
        done = await _find_done(db, task)

    written = 0
    parts = _split(opened, wanted, batch_rows, first_key, done)
    with show_progress(opened.rows, f"load {layout.name}", progress) as advance:
        advance(min(len(done) * batch_rows, opened.rows or 0))
        writing = (
            _write_here(db, task, parts)
            if connections == 1
            else _write_in_parallel(db, task, parts, connections)
        )
        async with aclosing(writing) as batches:
            async for part, rows in batches:
                written += rows
                advance(len(part.batch.vectors))
    return written


def _choose_columns(layout: Layout, source: Source, columns: Sequence[str] | None) -> list[str]:
    """Columns to carry along: those asked for, else all that both source and table have."""
    if columns is None:
        lost = sorted(set(source.skipped) & set(layout.columns))
        if lost:
            raise ValueError(
                f"{source.name}: column {lost[0]!r} does not have one value for each vector; "
                "leave it out, or say by columns= what to carry along"
            )
        return [name for name in source.columns if name in layout.columns]
    for name in columns:
        if name not in source.columns:
            known = ", ".join(source.columns) or "none but its vectors"
            raise ValueError(f"{source.name}: no column {name!r} to carry along; it has {known}")
        if name not in layout.columns:
            raise ValueError(f"no column {name!r} in table {layout.name!r}")
    return list(columns)


async def _find_done(db: Database, task: Task) -> set[int]:
    """Return the batches that are there already, if this goes on with them."""
    if not task.resume:
        return set()
    batches = await registry.find_batches(db, task.layout, task.source)
    for _, batch_rows, fingerprint in batches:
        if fingerprint != task.fingerprint:
            raise TableError(
                f"{task.source} has changed since its load began, or is read in another way: it "
                f"was {fingerprint}, it is {task.fingerprint}; load it without resume, with "
                "on_conflict"
            )
        if batch_rows != task.batch_rows:
            raise TableError(
                f"the load of {task.source} began with batch_rows={batch_rows}; resume with that"
            )
    return {batch.number for batch in batches}


def _split(
    source: Source, columns: Sequence[str], batch_rows: int, first_id: int | None, done: set[int]
) -> Iterator[Part]:
    """Yield the batches that are not done yet; all but the last have `batch_rows` rows."""
    first = 0
    batches = enumerate(_join(source.batches(columns, batch_rows), batch_rows))
    while True:
        try:
            number, batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise _SourceFailed(first) from error
        n = len(batch.vectors)
        if number not in done:
            if batch.ids is None and first_id is not None:
                ids = range(first_id + first, first_id + first + n)
                batch = Batch(ids, batch.vectors, batch.columns)
            yield Part(number, first, batch)
        first += n


def _join(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """Make batches of exactly `rows` rows out of smaller ones; the last may be smaller."""
    waiting: list[Batch] = []
    count = 0
    for batch in batches:
        start = 0
        while start < len(batch.vectors) or not len(batch.vectors):
            piece = _slice(batch, start, start + rows - count)
            if not len(piece.vectors):
                break
            waiting.append(piece)
            count += len(piece.vectors)
            start += len(piece.vectors)
            if count == rows:
                yield _concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield _concatenate(waiting)


def _slice(batch: Batch, start: int, end: int) -> Batch:
    if start == 0 and end >= len(batch.vectors):
        return batch
    part = slice(start, end)
    ids = None if batch.ids is None else batch.ids[part]
    return Batch(ids, batch.vectors[part], {n: v[part] for n, v in batch.columns.items()})


def _concatenate(batches: list[Batch]) -> Batch:
    first = batches[0]
    if len(batches) == 1:
        return first
    return Batch(
        None if first.ids is None else [key for b in batches if b.ids is not None for key in b.ids],
        np.concatenate([b.vectors for b in batches]),
        {n: [value for b in batches for value in b.columns[n]] for n in first.columns},
    )


async def write_part(db: Database, task: Task, part: Part) -> int:
    """Write a batch, its statistics and its record, all in one transaction."""
    layout, batch = task.layout, part.batch
    vectors = as_vectors(batch.vectors, layout.dim)
    check_columns(layout, len(vectors), batch.ids, batch.columns)
    async with db.transaction():
        # asked each time: the table may have been encoded anew between two batches
        quantizer = await decide(db, layout, task.sample)
        try:
            written, statistics = await write_rows(
                db, layout, quantizer, batch.ids, vectors, batch.columns, task.on_conflict
            )
        except RowError as error:
            raise RowError(part.first + error.row, error.id, error.reason) from None
        if task.source:
            if not task.resume and part.number == 0:
                # Not before: if this batch fails, an earlier load can still be resumed.
                await registry.forget_batches(db, layout, task.source)
            done = registry.LoadedBatch(part.number, task.batch_rows, task.fingerprint)
            await registry.record_batch(db, layout, task.source, done, written)
        # Last, as others wait for its row.
        await registry.add_statistics(db, layout, statistics)
    return written


async def _write_here(db: Database, task: Task, parts: Iterator[Part]) -> Written:
    """Write the parts one after another on the caller's connection.

    Another thread reads the next one meanwhile.
    """
    total = 0
    async with _threads(db, 1) as pool:
        coming = pool.submit(next, parts, None)
        while True:
            part = None
            try:
                part = await db.wait_for(coming)
                if part is None:
                    return
                coming = pool.submit(next, parts, None)
                rows = await write_part(db, task, part)
            except Exception as error:
                if part is None and not isinstance(error, _SourceFailed):
                    raise
                failure = _load_error(task, part, total, error)
                raise failure from failure.__cause__
            total += rows
            yield part, rows


async def _write_in_parallel(
    db: Database, task: Task, parts: Iterator[Part], connections: int
) -> Written:
    """Write the parts on connections like the caller's, each with a thread of its own."""
    settings = await db.fetch(SESSION)
    idle: SimpleQueue[BlockingDatabase] = SimpleQueue()

    def write(part: Part) -> int:
        own = idle.get()
        try:
            return run(write_part(own, task, part))
        finally:
            idle.put(own)

    async with AsyncExitStack() as stack:
        for _ in range(connections):
            own = await db.compute(_connect_alike, db.connection, settings)
            stack.enter_context(own.connection)
            idle.put(own)
        pool = await stack.enter_async_context(_threads(db, connections))
        pending: dict[Future[int], Part] = {}
        failed: tuple[Part | None, BaseException] | None = None
        total = 0
        # The first one alone if it makes room for the records of the others.
        limit = 2 * connections if task.resume or not task.source else 1
        while True:
            # As many wait as are being written, so that memory stays bounded.
            while failed is None and len(pending) < limit:
                try:
                    part = await db.compute(next, parts, None)
                except _SourceFailed as stop:
                    failed = None, stop
                    break
                if part is None:
                    break
                pending[pool.submit(write, part)] = part
            if not pending:
                break
            first = partial(wait, list(pending), return_when=FIRST_COMPLETED)
            for future in (await db.compute(first)).done:
                part = pending.pop(future)
                error = future.exception()
                if error is None:
                    limit = 2 * connections
                    total += future.result()
                    yield part, future.result()
                elif failed is None or failed[0] is None:
                    failed = part, error
                    pending = {f: p for f, p in pending.items() if not f.cancel()}
        if failed is not None:
            failure = _load_error(task, failed[0], total, failed[1])
            raise failure from failure.__cause__


@asynccontextmanager
async def _threads(db: Database, n: int) -> AsyncIterator[ThreadPoolExecutor]:
    """Give threads, and wait for them without holding up what they may wait for themselves."""
    pool = ThreadPoolExecutor(n)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        await db.compute(pool.shutdown)


def _connect_alike(connection: BaseConnection[Any], settings: Sequence[Row]) -> BlockingDatabase:
    """Open a connection to the same database: same adapters, same settings, same role."""
    info = connection.info
    own = psycopg.connect(info.dsn, password=info.password, autocommit=True, context=connection)
    try:
        with own.cursor(row_factory=tuple_row) as cursor:
            cursor.executemany("SELECT set_config(%s, %s, false)", settings)
    except BaseException:
        own.close()
        raise
    return BlockingDatabase(own)


def _load_error(task: Task, part: Part | None, written: int, error: BaseException) -> LoadError:
    """Make the error for a part that was not written, or for a source that failed: no part."""
    cause: BaseException | None = error
    last = None
    if isinstance(error, _SourceFailed):
        first, cause = error.first, error.__cause__
    else:
        assert part is not None
        first, last = part.first, part.first + len(part.batch.vectors) - 1
    reason = str(cause).strip() or type(cause).__name__
    failure = LoadError(task.source or "the source", first, last, written, reason)
    failure.__cause__ = cause
    return failure
