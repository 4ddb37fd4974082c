"""Writing vectors: COPY in one transaction, the decision, the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import sql

from pybq._catalog import registry
from pybq._catalog.database import Database
from pybq._catalog.layout import Column, Layout
from pybq._catalog.registry import no_statistics
from pybq._catalog.sample import SAMPLE_ROWS
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose_by_sample
from pybq._codes.arrays import as_vectors, by_place, spread
from pybq._codes.quantizer import Quantizer
from pybq._loading.copy import HEADER, TRAILER
from pybq._loading.encode import CHUNK_NBYTES, ChunkEncoder, encode_chunks, stored_vectors
from pybq._loading.progress import show_progress
from pybq._loading.source import unlike
from pybq.errors import TableError

ON_CONFLICT = ("error", "update", "skip")
OnConflict = Literal["error", "update", "skip"]
# Where rows wait for ON CONFLICT.
STAGE = sql.Identifier("pg_temp", "bq_stage")


async def ingest(
    db: Database,
    layout: Layout,
    ids: Sequence[Any] | NDArray[Any] | None,
    vectors: ArrayLike,
    columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
    on_conflict: OnConflict = "error",
    progress: bool | None = None,
    missing: NDArray[np.bool_] | None = None,
) -> int:
    """Write vectors, with their codes if the table has them, as `Table.ingest` promises.

    Rows that are `missing`, shape (n,), have NULL in place of their vector: not in tables of codes.
    """
    array = await db.compute(as_vectors, vectors, layout.dim)
    if missing is not None and layout.has_codes:
        raise ValueError(f"expected vectors for all rows of table {layout.name!r}, which has codes")
    n, columns = len(array), columns or {}
    check_columns(layout, n, ids, columns)
    check_keys(layout, ids is not None, on_conflict)
    if n == 0:
        return 0
    async with db.transaction():
        quantizer = await decide(db, layout, partial(take_sample, array))
        with show_progress(n, f"ingest {layout.name}", progress) as advance:
            written, statistics = await write_rows(
                db, layout, quantizer, ids, array, columns, on_conflict, advance, missing
            )
        await registry.add_statistics(db, layout, statistics)
    return written


async def write_rows(
    db: Database,
    layout: Layout,
    quantizer: Quantizer | None,
    ids: Sequence[Any] | NDArray[Any] | None,
    vectors: NDArray[Any],
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    on_conflict: OnConflict = "error",
    advance: Callable[[int], None] = lambda rows: None,
    missing: NDArray[np.bool_] | None = None,
) -> tuple[int, Statistics]:
    """Write checked rows by COPY, in the transaction that is open.

    Returns how many were written, and their statistics, which the caller must add.
    """
    ids = None if ids is None else by_place(ids)
    keys = [] if ids is None else zip(layout.key, layout.split_keys(ids), strict=True)
    fields = dict(keys) | {layout.columns[n]: by_place(values) for n, values in columns.items()}
    target = [*fields, *dict.fromkeys(one for one in (layout.source, layout.searched) if one)]
    names = sql.SQL(", ").join(column.identifier for column in target)
    into = layout.identifier
    if on_conflict != "error":
        # COPY knows no ON CONFLICT: by way of a table that is gone with the transaction.
        into = STAGE
        await _create_stage(db, layout, target)
    copy = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT binary)").format(into, names)
    statistics = no_statistics(layout)
    # What ends up in the table counts: of staged rows that is known afterwards.
    collect = layout.has_codes and on_conflict == "error"
    normalize = statistics.normalize if collect else None
    encoder = ChunkEncoder(quantizer, layout.store, db.connection, normalize, missing)
    with closing(encode_chunks(encoder, ids, vectors, fields)) as chunks:
        async with db.copy(copy) as stream:
            await stream.write(HEADER)
            for future in chunks:
                chunk = await db.wait_for(future)
                await stream.write(chunk.data)
                if chunk.statistics is not None:
                    statistics.merge(chunk.statistics)
                advance(chunk.rows)
            await stream.write(TRAILER)
    if on_conflict == "error":
        return len(vectors), statistics
    places = await _write_staged(db, layout, target, on_conflict)
    await db.execute(sql.SQL("DROP TABLE {}").format(STAGE))
    if layout.has_codes:
        statistics = await db.compute(_count_stored, layout, vectors, places)
    return len(places), statistics


def _count_stored(layout: Layout, vectors: NDArray[Any], places: NDArray[np.int64]) -> Statistics:
    """Make statistics of the rows at these places, a chunk at a time."""
    statistics = no_statistics(layout)
    rows = max(1, CHUNK_NBYTES // (4 * layout.dim))
    for start in range(0, len(places), rows):
        part = vectors[places[start : start + rows]]
        _, exact = stored_vectors(part, layout.store, 0, places)
        statistics.update(exact)
    return statistics


async def _create_stage(db: Database, layout: Layout, target: Sequence[Column]) -> None:
    """Make the table where rows wait; not from a query, as the caller may not read the table."""
    found = await db.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped",
        [layout.oid],
    )
    types: dict[str, str] = dict(found)
    lines = [
        sql.SQL("{} {}").format(column.identifier, sql.SQL(types[column.name])) for column in target
    ]
    lines.append(sql.SQL("{} integer GENERATED ALWAYS AS IDENTITY").format(_name_place(target)))
    await db.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(
            STAGE, sql.SQL(", ").join(lines)
        )
    )


def _name_place(target: Sequence[Column]) -> sql.Identifier:
    """The column of the stage that numbers its rows: none of the others is called so."""
    return sql.Identifier(unlike("bq_place", [column.name for column in target]))


async def _write_staged(
    db: Database, layout: Layout, target: Sequence[Column], on_conflict: OnConflict
) -> NDArray[np.int64]:
    """Move rows from the stage to the table; return which ones: of equal keys one."""
    rest = [column.identifier for column in target if column not in layout.key]
    updates = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in rest)
    skip = on_conflict == "skip"  # the first of equal keys; "update": the last
    rows = await db.fetch(
        sql.SQL(
            """
            WITH chosen AS (
                SELECT DISTINCT ON ({key}) * FROM {stage} ORDER BY {key}, {place} {order}
            ), written AS (
                INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM chosen
                ON CONFLICT ({key}) DO {action} RETURNING {key}
            )
            SELECT {place} - 1 FROM chosen JOIN written USING ({key}) ORDER BY 1
            """
        ).format(
            key=layout.keys,
            stage=STAGE,
            place=_name_place(target),
            order=sql.SQL("ASC" if skip else "DESC"),
            table=layout.identifier,
            names=sql.SQL(", ").join(column.identifier for column in target),
            action=sql.SQL("NOTHING") if skip else sql.SQL("UPDATE SET ") + updates,
        )
    )
    return np.array([place for (place,) in rows], np.int64)


async def decide(
    db: Database, layout: Layout, sample: Callable[[], NDArray[np.float32]]
) -> Quantizer | None:
    """Return what makes the codes; decide it now, from a sample, if no ingest has done so.

    None if the table has none. It stays what it is until the end of the transaction:
    `Table.reencode` waits for the lock. Of several connections that decide at once, one does;
    the others wait for its end, and follow.
    """
    if not layout.has_codes:
        return None
    await db.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(layout.identifier))
    transform = await registry.read_transform(db, layout)
    if transform is not None:
        return Quantizer(layout.dim, transform)
    decision, statistics = await db.compute(_choose, layout, sample)
    return Quantizer(layout.dim, await registry.decide(db, layout, decision, statistics))


def _choose(
    layout: Layout, sample: Callable[[], NDArray[np.float32]]
) -> tuple[Decision, Statistics]:
    statistics = no_statistics(layout)
    rows = sample()
    statistics.update(rows)
    return choose_by_sample(statistics, rows, layout.metric), statistics


def check_keys(layout: Layout, has_ids: bool, on_conflict: OnConflict) -> None:
    """Whether rows with keys, or without, can be written so; before anything is."""
    if on_conflict not in ON_CONFLICT:
        raise ValueError(f"expected on_conflict of {', '.join(ON_CONFLICT)}, got {on_conflict!r}")
    if has_ids and not layout.has_key:
        raise TableError(f"table {layout.name!r} has no primary key; write vectors with ids=None")
    if not has_ids and on_conflict != "error":
        raise ValueError(f"expected ids with on_conflict={on_conflict!r}, got None")


def check_columns(layout: Layout, n: int, ids: Any, columns: Mapping[str, Any]) -> None:
    for name in columns:
        if name not in layout.columns:
            raise ValueError(f"no column {name!r} in table {layout.name!r}")
    named = [("ids", ids), *((f"column {name!r}", values) for name, values in columns.items())]
    for what, values in named:
        if values is not None and len(values) != n:
            raise ValueError(f"{what}: expected {n} values, got {len(values)}")


def take_sample(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return up to SAMPLE_ROWS rows, spread evenly over all.

    Rows that are not finite are passed over: encoding names them.
    """
    with np.errstate(over="ignore"):
        sample = np.asarray(vectors[spread(len(vectors), SAMPLE_ROWS)], np.float32)
    return sample[np.isfinite(sample).all(axis=1)]
