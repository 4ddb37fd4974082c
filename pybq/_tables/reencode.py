"""Encoding a table anew with another transform, while it is searched and written to.

The codes of a table have one transform, as codes of two cannot be compared. So the new ones go
into a second column: a trigger fills it for whoever writes, batches fill the rest, its index is
built beside, and a last short transaction puts it in the place of the first. Until then nothing
that searches see has changed. bq_columns says what is under way, so that it can be continued.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic, sleep

import numpy as np
from psycopg import sql
from psycopg.errors import DeadlockDetected, LockNotAvailable

from pybq._catalog import registry
from pybq._catalog.database import Database
from pybq._catalog.indexes import VectorIndex, find_indexes, write_index
from pybq._catalog.layout import Layout
from pybq._catalog.registry import Encoding
from pybq._catalog.sample import sample_rows
from pybq._catalog.size import count_pages
from pybq._choice.probe import PROBE_QUERIES, PROBE_ROWS
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import MIN_ROWS, Decision, choose_by_sample
from pybq._codes.quantizer import Quantizer
from pybq._loading.progress import show_progress
from pybq.errors import TableError

# Pages of one batch, 1 MB: its rows are locked against writers for about 20 ms.
BATCH_PAGES = 128
# Each share of a large table is vacuumed when it is done, so that its space serves the next.
VACUUM_SHARES, VACUUM_PAGES = 8, 1024
# A lock that keeps searches out is waited for so long at a time, as searches wait behind it; in
# between they go on.
LOCK_SECONDS, PAUSE_SECONDS, LOCK_ATTEMPTS = 0.5, 1.0, 400
# What a reencode that was killed may need to end on the server.
ALONE_SECONDS = 5

TRIGGER = sql.Identifier("bq_reencode")
FILLED = sql.Identifier("bq_reencode_filled")


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be done."""

    column: str  # that is filled
    transform: int
    decision: Decision
    statistics: Statistics
    reason: str
    state: Encoding


async def reencode(
    db: Database, layout: Layout, transform: int | None = None, progress: bool | None = None
) -> int:
    """Encode all rows with another transform, as `Table.reencode` promises."""
    layout.need_codes()
    if layout.source is None:
        raise TableError(
            f"table {layout.name!r} keeps codes only: there are no vectors to encode anew"
        )
    if transform is not None:
        Quantizer(layout.dim, transform)  # checks it
    if db.in_transaction:
        raise TableError("reencode commits as it goes; end the open transaction first")
    async with db.autocommitting(), _alone(db, layout):
        job = await _begin(db, layout, transform)
        if job is None:
            return 0
        rows = await _fill(db, layout, job, progress)
        await _build_indexes(db, layout, job)
        await _swap(db, layout, job)
    return rows


@asynccontextmanager
async def _alone(db: Database, layout: Layout) -> AsyncIterator[None]:
    """Keep other reencodes of the table away."""
    key = [layout.oid]
    take = "SELECT pg_try_advisory_lock(hashtext('pybq.reencode'), %s::oid::int)"
    # Not waited for by the server: the other one's CREATE INDEX CONCURRENTLY waits for whoever
    # has a snapshot, and each would wait for the other.
    end = monotonic() + ALONE_SECONDS
    while await db.fetch_one(take, key) != (True,):
        if monotonic() > end:
            raise TableError(
                f"table {layout.name!r} is being encoded anew by another connection; if that was "
                "killed, wait until the server has noticed"
            )
        await db.compute(sleep, PAUSE_SECONDS / 4)
    try:
        yield
    finally:
        if not db.connection.closed:
            await db.execute(
                "SELECT pg_advisory_unlock(hashtext('pybq.reencode'), %s::oid::int)", key
            )


async def _begin(db: Database, layout: Layout, transform: int | None) -> _Job | None:
    """Decide, and make column and trigger, or find those that are there; None: nothing to do."""
    state = await _read_state(db, layout)
    statistics, decision = await _decide(db, layout, measure=transform is None)
    if transform is not None:
        wanted, reason = transform, "set by reencode"
    elif state.next_transform is not None:
        wanted, reason = state.next_transform, "set by reencode"
        if decision.rotate == (wanted != 0):
            reason = decision.reason
    elif decision.rotate == (state.transform != 0):
        # If a measurement said so against the statistics, status() should know of it.
        await registry.decide_again(
            db, layout, state.transform, decision, statistics, decision.reason
        )
        return None
    else:
        wanted, reason = decision.transform, decision.reason

    if state.next_column is not None and state.next_transform != wanted:
        await _exclusively(db, layout, lambda: _abandon(db, layout, str(state.next_column)))
        state = await _read_state(db, layout)
    if wanted == state.transform:
        return None
    await _check_dependents(db, layout, state)
    if not state.filled:
        await _check_vectors(db, layout)
    column = state.next_column or _shorten(layout.code.name, "_next")
    job = _Job(column, wanted, decision, statistics, reason, state)
    if state.next_column is None:
        if column in layout.columns:
            raise TableError(f"column {column!r} is in the way: rename it, or drop it")
        await _exclusively(db, layout, lambda: _prepare(db, layout, job))
    return job


async def _read_state(db: Database, layout: Layout) -> Encoding:
    """Ask what there is, and refuse what cannot be encoded anew."""
    state = await registry.read_encoding(db, layout)
    if not state.owned:
        raise TableError(f"only the owner of table {layout.name!r} can encode it anew")
    if state.undecided:
        raise TableError(f"table {layout.name!r} has no codes yet; the first ingest makes them")
    if state.generated:
        raise TableError(
            f"column {layout.code.name!r} is generated; change its expression instead: drop it, "
            "and add it with another transform"
        )
    if layout.distributed:
        raise TableError(
            f"table {layout.name!r} is distributed, which is not handled: load its vectors into "
            "another table"
        )
    if state.partitioned:
        raise TableError(f"table {layout.name!r} is partitioned or inherited, which is not handled")
    return state


async def _decide(db: Database, layout: Layout, measure: bool) -> tuple[Statistics, Decision]:
    """Choose by the statistics that `Table.status` shows, and by a sample of stored vectors."""
    statistics = await registry.read_statistics(db, layout)
    if statistics.count < MIN_ROWS:  # rows were not written by pybq
        stored = await registry.recompute_statistics(db, layout)
        statistics = stored if stored.count else statistics
    sample = np.empty((0, layout.dim), np.float32)
    if measure:
        _, sample = await sample_rows(db, layout, PROBE_ROWS + PROBE_QUERIES)
    return statistics, await db.compute(choose_by_sample, statistics, sample, layout.metric)


async def _check_dependents(db: Database, layout: Layout, state: Encoding) -> None:
    """Refuse what would go with the old column, or keep it; indexes of ours are built anew."""
    found = await db.fetch(
        """
        SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
        FROM pg_depend d
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
        LEFT JOIN pg_index i ON d.classid = 'pg_class'::regclass AND i.indexrelid = d.objid
        LEFT JOIN pg_class x ON x.oid = i.indexrelid
        LEFT JOIN pg_am m ON m.oid = x.relam
        WHERE d.refclassid = 'pg_class'::regclass AND a.attrelid = %s AND a.attname = %s
        AND k.contype IS DISTINCT FROM 'n' AND k.conname IS DISTINCT FROM %s
        AND (m.amname = 'bq' AND i.indkey[0] = a.attnum AND i.indexprs IS NULL
             AND i.indpred IS NULL) IS NOT TRUE
        UNION
        SELECT 'privileges granted on column ' || quote_ident(attname) FROM pg_attribute
        WHERE attrelid = %s AND attname = %s AND attacl IS NOT NULL
        ORDER BY 1
        """,
        [
            *(layout.oid, layout.code.name, _constraint_name(layout, state.transform)),
            *(layout.oid, layout.code.name),
        ],
    )
    if found:
        raise TableError(
            f"column {layout.code.name!r} of table {layout.name!r} is to be replaced, but more "
            f"depends on it: {', '.join(name for (name,) in found)}; drop that first, and make "
            "it again afterwards"
        )


async def _check_vectors(db: Database, layout: Layout) -> None:
    """Refuse rows that have a code only: without a vector there will be no other."""
    assert layout.source is not None
    found = await db.fetch_one(
        sql.SQL("SELECT {} FROM {} WHERE {} IS NULL AND {} IS NOT NULL LIMIT 1").format(
            layout.id.identifier,
            layout.identifier,
            layout.source.identifier,
            layout.code.identifier,
        )
    )
    if found is not None:
        raise TableError(
            f"row with {layout.id.name} {found[0]!r} of table {layout.name!r} has a code and no "
            "vector to encode anew; give such rows a vector, or take their code away"
        )


def _constraint_name(layout: Layout, transform: int) -> str:
    return _shorten(layout.code.name, f"_transform_{transform}")


async def _prepare(db: Database, layout: Layout, job: _Job) -> None:
    """Make the column that is to be filled, and have it filled by whoever writes."""
    names = _names(layout, job)
    await db.execute(
        sql.SQL(
            "ALTER TABLE {table} ADD COLUMN {next} bqvec({dim}),"
            # Without these, a writer that knows the old transform could spoil all searches.
            " ADD CONSTRAINT {constraint} CHECK (transform({next}) = {transform}) NOT VALID"
        ).format(**names)
    )
    if job.state.filled:
        await db.execute(
            sql.SQL(
                "ALTER TABLE {table} ADD CONSTRAINT {filled} CHECK ({next} IS NOT NULL) NOT VALID"
            ).format(**names)
        )
    await db.execute(
        sql.SQL(
            "CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW"
            " EXECUTE FUNCTION bq_encode_trigger({next_name}, {source_name}, {transform_name})"
        ).format(**names)
    )
    await registry.set_next(db, layout, job.column, job.transform)


async def _abandon(db: Database, layout: Layout, column: str) -> None:
    """Drop what an earlier reencode to another transform has done."""
    await db.execute(sql.SQL("DROP TRIGGER {} ON {}").format(TRIGGER, layout.identifier))
    await db.execute(
        sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(layout.identifier, sql.Identifier(column))
    )
    await registry.set_next(db, layout, None, None)


async def _fill(db: Database, layout: Layout, job: _Job, progress: bool | None) -> int:
    """Encode all rows that the trigger has not; return their number.

    Rows that others hold are passed over and done in a later pass, so that nobody waits for us
    while we wait for them.
    """
    names = _names(layout, job)
    missing = sql.SQL("{next} IS NULL AND {source} IS NOT NULL").format(**names)
    batch = sql.SQL(
        "UPDATE {table} SET {next} = bq_encode({source}::real[], {transform})"
        " WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table}"
        " WHERE ctid >= %s::text::tid AND ctid < %s::text::tid AND {missing}"
        " FOR NO KEY UPDATE SKIP LOCKED))"
    ).format(missing=missing, **names)
    total = await db.fetch_one(
        sql.SQL("SELECT count(*) FROM {table} WHERE {missing}").format(missing=missing, **names)
    )
    assert total is not None
    done = 0
    with show_progress(total[0], f"reencode {layout.name}", progress) as advance:
        while True:
            pages = await count_pages(db, layout)
            share = max(VACUUM_PAGES, pages // VACUUM_SHARES + 1)
            for start in range(0, pages, BATCH_PAGES):
                async with db.transaction():
                    # What a crash takes is done again; the last transaction waits for the disk.
                    await db.execute("SET LOCAL synchronous_commit = off")
                    rows = await db.execute(batch, [f"({start},0)", f"({start + BATCH_PAGES},0)"])
                done += rows
                advance(rows)
                if start % share + BATCH_PAGES >= share:
                    await db.execute(
                        sql.SQL("VACUUM (SKIP_LOCKED, TRUNCATE off) {table}").format(**names)
                    )
            left = await db.fetch_one(
                sql.SQL("SELECT 1 FROM {table} WHERE {missing} LIMIT 1").format(
                    missing=missing, **names
                )
            )
            if left is None:
                return done
            await _pause(db)


async def _build_indexes(db: Database, layout: Layout, job: _Job) -> None:
    """Build a twin of each index of the codes; one that was not finished is built anew."""
    for index in await _find_indexes(db, layout):
        twin = sql.Identifier(job.state.schema, _twin_name(index.oid))
        found = await db.fetch_one(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)",
            [twin.as_string(db.connection)],
        )
        if found == (True,):
            continue
        if found == (False,):
            await db.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(twin))
        await db.execute(
            write_index(
                layout.identifier,
                job.column,
                filters=index.columns[1:],
                options=index.options,
                name=_twin_name(index.oid),
                tablespace=index.tablespace,
                concurrently=True,
            )
        )


async def _find_indexes(db: Database, layout: Layout) -> list[VectorIndex]:
    """Find the indexes of all codes."""
    found = await find_indexes(db, layout.oid, layout.code.name)
    return [index for index in found if index.valid and not index.partial]


def _twin_name(index: int) -> str:
    return f"bq_reencode_{index}"


async def _swap(db: Database, layout: Layout, job: _Job) -> None:
    """Put the new column and its indexes in the place of the old ones."""
    names = _names(layout, job)
    checked = [names["constraint"], *([FILLED] if job.state.filled else [])]
    await db.execute(
        sql.SQL("ALTER TABLE {table} {validate}").format(
            validate=sql.SQL(", ").join(
                sql.SQL("VALIDATE CONSTRAINT {}").format(name) for name in checked
            ),
            **names,
        )
    )
    indexes = await _find_indexes(db, layout)

    async def swap() -> None:
        await db.execute(sql.SQL("DROP TRIGGER {trigger} ON {table}").format(**names))
        await db.execute(sql.SQL("ALTER TABLE {table} DROP COLUMN {code}").format(**names))
        await db.execute(
            sql.SQL("ALTER TABLE {table} RENAME COLUMN {next} TO {code}").format(**names)
        )
        if job.state.filled:
            # The constraint that holds already spares a scan of the table.
            await db.execute(
                sql.SQL("ALTER TABLE {table} ALTER COLUMN {code} SET NOT NULL").format(**names)
            )
            await db.execute(
                sql.SQL("ALTER TABLE {table} DROP CONSTRAINT {filled}").format(**names)
            )
        for index in indexes:
            await db.execute(
                sql.SQL("ALTER INDEX {} RENAME TO {}").format(
                    sql.Identifier(job.state.schema, _twin_name(index.oid)),
                    sql.Identifier(index.name),
                )
            )
        await registry.decide_again(
            db, layout, job.transform, job.decision, job.statistics, job.reason
        )

    await _exclusively(db, layout, swap)


async def _exclusively(db: Database, layout: Layout, change: Callable[[], Awaitable[None]]) -> None:
    """Make a change with the table locked against everybody, in one transaction."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            async with db.transaction():
                await db.execute(f"SET LOCAL lock_timeout = '{int(1000 * LOCK_SECONDS)}ms'")
                await db.execute(
                    sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(layout.identifier)
                )
                await change()
            return
        except (LockNotAvailable, DeadlockDetected):
            await _pause(db)
    raise TableError(
        f"table {layout.name!r} was always in use by long transactions; what is done stays, "
        "call reencode again to continue"
    )


async def _pause(db: Database) -> None:
    await db.fetch("SELECT pg_sleep(%s)", [PAUSE_SECONDS])


def _shorten(name: str, suffix: str) -> str:
    """An identifier of at most 63 bytes that ends with the suffix."""
    return name.encode()[: 63 - len(suffix)].decode(errors="ignore") + suffix


def _names(layout: Layout, job: _Job) -> dict[str, sql.Composable]:
    assert layout.source is not None
    return {
        "table": layout.identifier,
        "code": layout.code.identifier,
        "source": layout.source.identifier,
        "next": sql.Identifier(job.column),
        "dim": sql.Literal(layout.dim),
        "transform": sql.Literal(job.transform),
        "constraint": sql.Identifier(_constraint_name(layout, job.transform)),
        "filled": FILLED,
        "trigger": TRIGGER,
        # Arguments of a trigger are text.
        "next_name": sql.Literal(job.column),
        "source_name": sql.Literal(layout.source.name),
        "transform_name": sql.Literal(str(job.transform)),
    }
