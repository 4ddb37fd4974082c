"""Writing vectors: arrays -> encoded chunks of a binary COPY, the decision, the statistics."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import BaseConnection, ProgrammingError, sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from psycopg.types.json import Json, Jsonb

from pybq._catalog.database import Database
from pybq._catalog.schema import Column, Layout
from pybq._catalog.status import SAMPLE_ROWS, no_statistics, read_transform
from pybq._choice.probe import probe
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import MIN_ROWS, Decision, choose
from pybq._codes import core
from pybq._codes.arrays import by_place, fill_mask
from pybq._codes.quantizer import Quantizer
from pybq._loading.copy import HEADER, TRAILER, encode_rows, to_half
from pybq._loading.sources import spread
from pybq.errors import RowError, TableError

# float32 bytes of the vectors of one chunk.  Larger ones were no faster (benchmarks/ingest.py).
CHUNK_NBYTES = 1 << 20
THREADS = 2

# pg_type.typname -> kind of the COPY encoder.  Other types go through psycopg's own dumpers.
KINDS = {
    "bool": "bool",
    "int2": "int2",
    "int4": "int4",
    "int8": "int8",
    "float4": "float4",
    "float8": "float8",
    "text": "text",
    "varchar": "text",
    "bpchar": "text",
    "citext": "text",
    "name": "text",
    "bytea": "bytea",
    "uuid": "uuid",
}
ON_CONFLICT = ("error", "update", "skip")
OnConflict = Literal["error", "update", "skip"]
# Where rows wait for ON CONFLICT, and the column that numbers them.
STAGE = sql.Identifier("pg_temp", "bq_stage")
PLACE = sql.Identifier("bq_place")

NUMBERS = ("int2", "int4", "int8", "float4", "float8")


async def ingest(
    db: Database,
    layout: Layout,
    ids: Sequence[Any] | NDArray[Any] | None,
    vectors: ArrayLike,
    columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
    on_conflict: OnConflict = "error",
    progress: bool | None = None,
) -> int:
    """Write vectors, with their codes if the table has them, as `Table.ingest` promises."""
    array = await db.compute(as_vectors, vectors, layout.dim)
    n, columns = len(array), columns or {}
    check_columns(layout, n, ids, columns)
    if on_conflict not in ON_CONFLICT:
        raise ValueError(f"expected on_conflict of {', '.join(ON_CONFLICT)}, got {on_conflict!r}")
    if n == 0:
        return 0
    async with db.transaction():
        quantizer = await decide(db, layout, partial(take_sample, array))
        with show_progress(n, f"ingest {layout.name}", progress) as advance:
            written, statistics = await write_rows(
                db, layout, quantizer, ids, array, columns, on_conflict, advance
            )
        await add_statistics(db, layout, statistics)
    return written


async def delete_rows(db: Database, layout: Layout, ids: Sequence[Any] | NDArray[Any]) -> int:
    """Delete rows by their keys, as `Table.delete` promises."""
    if not layout.has_key:
        raise TableError(f"table {layout.name!r} has no primary key to tell rows by; use SQL")
    condition, keys = layout.with_keys(by_place(ids))
    parameters = [each.tolist() if isinstance(each, np.ndarray) else list(each) for each in keys]
    async with db.transaction():
        return await db.execute(
            sql.SQL("DELETE FROM {} WHERE {}").format(layout.identifier, condition), parameters
        )


async def write_rows(
    db: Database,
    layout: Layout,
    quantizer: Quantizer | None,
    ids: Sequence[Any] | NDArray[Any] | None,
    vectors: NDArray[Any],
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    on_conflict: OnConflict = "error",
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[int, Statistics]:
    """Write checked rows by COPY, in the transaction that is open.

    Returns how many were written, and their statistics, which the caller must add.
    """
    if ids is None and on_conflict != "error":
        raise ValueError(f"expected ids with on_conflict={on_conflict!r}, got None")
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
    encoder = ChunkEncoder(quantizer, statistics.normalize, layout.store, db.connection)
    with closing(encode_chunks(encoder, ids, vectors, fields)) as chunks:
        async with db.copy(copy) as stream:
            await stream.write(HEADER)
            for future in chunks:
                chunk = await db.wait_for(future)
                await stream.write(chunk.data)
                statistics.merge(chunk.statistics)
                advance(chunk.rows)
            await stream.write(TRAILER)
    if on_conflict == "error":
        return len(vectors), statistics
    places = await _write_staged(db, layout, target, on_conflict)
    await db.execute(sql.SQL("DROP TABLE {}").format(STAGE))
    if len(places) < len(vectors) and layout.has_codes:  # only what is in the table counts
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
    lines.append(sql.SQL("{} integer GENERATED ALWAYS AS IDENTITY").format(PLACE))
    await db.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(
            STAGE, sql.SQL(", ").join(lines)
        )
    )


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
            place=PLACE,
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
    transform = await read_transform(db, layout)
    if transform is not None:
        return Quantizer(layout.dim, transform)
    decision, statistics = await db.compute(_choose, layout, sample)
    row = statistics.to_row()
    fields = ", ".join(["%b"] * len(row))
    decided = await db.fetch_one(
        f"SELECT bq_decide(%s::oid, %s, %s, ROW({fields})::bq_statistics, %s, %s, %s)",
        [
            layout.oid,
            layout.code.name,
            decision.transform,
            *row,
            finite(decision.f_axis),
            finite(decision.f_rotate),
            decision.reason,
        ],
    )
    assert decided is not None
    return Quantizer(layout.dim, int(decided[0]))


async def add_statistics(db: Database, layout: Layout, statistics: Statistics) -> None:
    """Merge in the database, under the row's lock: what others added meanwhile stays.

    Without codes there is nothing to decide from them: the index looks at the rows themselves.
    """
    if not layout.has_codes:
        return
    row = statistics.to_row()
    fields = ", ".join(["%b"] * len(row))
    await db.execute(
        f"SELECT bq_add_statistics(%s::oid, %s, ROW({fields})::bq_statistics)",
        [layout.oid, layout.code.name, *row],
    )


def _choose(
    layout: Layout, sample: Callable[[], NDArray[np.float32]]
) -> tuple[Decision, Statistics]:
    statistics = no_statistics(layout)
    rows = sample()
    statistics.update(rows)
    measured = probe(rows, metric=layout.metric) if len(rows) >= MIN_ROWS else None
    return choose(statistics, measured, metric=layout.metric), statistics


def finite(value: float) -> float | None:
    """Return what the database keeps of a fidelity."""
    return value if math.isfinite(value) else None


def as_vectors(vectors: ArrayLike, dim: int) -> NDArray[Any]:
    array = fill_mask(vectors)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"expected vectors of float32, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"expected vectors of shape (n, {dim}), got {array.shape}")
    return array


def check_columns(layout: Layout, n: int, ids: Any, columns: Mapping[str, Any]) -> None:
    for name in columns:
        if name not in layout.columns:
            raise ValueError(f"no column {name!r} in table {layout.name!r}")
    if ids is not None and not layout.has_key:
        raise TableError(f"table {layout.name!r} has no primary key; write vectors with ids=None")
    named = [("ids", ids), *((f"column {name!r}", values) for name, values in columns.items())]
    for what, values in named:
        if values is not None and len(values) != n:
            raise ValueError(f"{what}: expected {n} values, got {len(values)}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Encoded rows: how many, their COPY bytes without header and trailer, their statistics."""

    rows: int
    data: bytes
    statistics: Statistics


class ChunkEncoder:
    """Turns chunks of rows into COPY bytes and statistics; several threads may use one.

    Parameters
    ----------
    quantizer : Quantizer or None
        Makes the codes; None: the table has none.
    normalize : bool
        Scale vectors to norm 1 for their statistics.
    store : {"halfvec", "vector"} or None
        How the vectors themselves are kept; None keeps codes only.
    connection : psycopg.BaseConnection
        Where its adapters are looked up; nothing is sent.
    """

    def __init__(
        self,
        quantizer: Quantizer | None,
        normalize: bool,
        store: str | None,
        connection: BaseConnection[Any],
    ) -> None:
        self.quantizer = quantizer
        self.normalize = normalize
        self.store = store
        self._connection = connection

    def encode(
        self, start: int, ids: Any, vectors: NDArray[Any], values: Mapping[Column, Any]
    ) -> Chunk:
        """Encode one chunk, whose first row is row `start` of the ingest.

        COPY order: the columns of `values`, the vector if it is kept, the code if there is one.
        """
        stored, exact = stored_vectors(vectors, self.store, start, ids)
        # one chunk in so many rows: each would begin with a window of its own
        window = core.window_start(start, vectors.shape[1])
        search = start <= window < start + len(vectors)
        statistics = Statistics(vectors.shape[1], self.normalize, search)
        made = [] if self.store is None else [(self.store, stored)]
        if self.quantizer is not None:
            try:
                made.append(("bqvec", self.quantizer.encode(exact)))
            except ValueError:
                raise self._bad_row(start, ids, exact) from None
            statistics.update(exact)
        elif not np.isfinite(exact).all():
            raise self._bad_row(start, ids, exact)

        fields = {
            column: copy_column(column, each, start, self._connection)
            for column, each in values.items()
        }
        try:
            parts = list(encode_rows([*fields.values(), *made]))
        except (TypeError, ValueError):
            raise _bad_field(start, fields) from None
        data = b"".join(part for part in parts if part not in (HEADER, TRAILER))
        return Chunk(len(vectors), data, statistics)

    def _bad_row(self, start: int, ids: Any, vectors: NDArray[np.float32]) -> RowError:
        quantizer = self.quantizer or Quantizer(vectors.shape[1])  # has the words for it
        for i, vector in enumerate(vectors):
            try:
                quantizer.encode(vector)
            except ValueError as error:
                return row_error(start, i, ids, str(error))
        raise AssertionError("rows are bad together, but not one by one")


def stored_vectors(
    vectors: NDArray[Any], store: str | None, start: int, ids: Any
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the vectors as the table keeps them, and the same values in float32.

    Codes are made from what is stored, not from what came in: `code` then equals
    `bq_encode(embedding, transform)` in SQL, bit for bit, whoever computes it.
    """
    if store != "halfvec":
        exact = np.ascontiguousarray(vectors, np.float32)
        return exact, exact
    half, exact = to_half(vectors)
    if not np.isinf(exact).any():
        return half, exact
    # Infinity that came in is the encoder's to report; only what the rounding made is ours.
    overflow = np.isinf(exact).any(axis=1) & np.isfinite(vectors).all(axis=1)
    if not overflow.any():
        return half, exact
    row = int(np.argmax(overflow))
    largest = np.abs(np.asarray(vectors[row], np.float64)).max()
    reason = f'{largest:g} is too large for halfvec; keep such vectors with store="vector"'
    raise row_error(start, row, ids, reason)


def row_error(start: int, row: int, ids: Any, reason: str) -> RowError:
    """Make the error for one row of the chunk that begins at row `start` of the ingest."""
    key = None if ids is None else list(ids)[row]
    return RowError(start + row, key.item() if isinstance(key, np.generic) else key, reason)


def _bad_field(start: int, fields: Mapping[Column, tuple[Any, ...]]) -> Exception:
    """Make the error that names the column, and the row of the ingest, of a value that is wrong."""
    for column, field in fields.items():
        try:
            list(encode_rows([field]))
        except (TypeError, ValueError) as error:
            where, _, reason = str(error).partition(": ")  # "column 0", perhaps ", row 7"
            row = where.partition(", row ")[2]
            at = f", row {start + int(row)}" if row else ""
            kind = f"column {column.name!r} of type {column.declared}{at}"
            return type(error)(f"{kind}: {reason}")
    raise AssertionError("columns are wrong together, but not one by one")


def copy_column(
    column: Column, values: Any, start: int, connection: BaseConnection[Any]
) -> tuple[Any, ...]:
    """Return what the COPY encoder takes for some rows of one column: kind, values, NULL mask."""
    if column.is_enum:
        return ("bytea", _dump_labels(values, connection))
    kind = KINDS.get(column.type_name)
    if kind is None:
        return ("bytea", dump_values(column, values, start, connection))
    if kind in NUMBERS or kind == "bool":
        if not isinstance(values, np.ndarray) or values.dtype == object:
            values = list(values)
            nulls = np.array([value is None for value in values], bool)
            filler = False if kind == "bool" else 0
            values = np.array([filler if value is None else value for value in values])
            return (kind, values, nulls) if nulls.any() else (kind, values)
    return (kind, values)


def _dump_labels(values: Any, connection: BaseConnection[Any]) -> list[bytes | None]:
    """Return the wire form of values of an enum: labels, in binary, too; the server checks them."""
    transformer = Transformer(connection)

    def dump(value: Any) -> bytes | None:
        if value is None:
            return None
        if isinstance(value, str):
            return value.encode()
        # Python's enums as psycopg dumps them, registered or not.
        dumped = transformer.get_dumper(value, PyFormat.TEXT).dump(value)
        return None if dumped is None else bytes(dumped)

    return [dump(value) for value in values]


def dump_values(
    column: Column, values: Any, start: int, connection: BaseConnection[Any]
) -> list[bytes | None]:
    """Return the wire form of each value, by psycopg's dumper of the column's type."""
    transformer = Transformer(connection)
    what = f"column {column.name!r} of type {column.declared}"
    try:
        transformer.set_dumper_types([column.type_oid], Format.BINARY)
    except ProgrammingError as error:
        raise TypeError(
            f"{what}: psycopg has no binary dumper for {column.type_name}; register one on the "
            "connection, or leave the column out"
        ) from error
    dumped: list[bytes | None] = []
    for i, value in enumerate(values):
        try:
            (field,) = transformer.dump_sequence(
                [_as_python(column.type_name, value)], [PyFormat.BINARY]
            )
        except Exception as error:
            raise TypeError(f"{what}, row {start + i}: {error}") from error
        dumped.append(None if field is None else bytes(field))
    return dumped


def _as_python(type_name: str, value: Any) -> Any:
    """Return a value as psycopg's dumper of the type expects it."""
    if isinstance(value, str) and type_name in ("json", "jsonb"):
        # As in SQL, where text becomes a document: its dumper would make one string of it.
        try:
            json.loads(value)
        except ValueError:
            raise ValueError(
                f"expected JSON text or Python values, got {value[:40]!r}; a string that is the "
                f"value itself is {type_name.capitalize()}(...) of psycopg.types.json"
            ) from None
        return Json(value, dumps=str) if type_name == "json" else Jsonb(value, dumps=str)
    if isinstance(value, np.datetime64):
        unit = "D" if type_name == "date" else "us"
        value = value.astype(f"datetime64[{unit}]").item()  # NaT: None
    if type_name == "timestamptz" and isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"expected a time with its zone, got {value}; make it one of UTC, say")
    if isinstance(value, np.timedelta64):
        return value.astype("timedelta64[us]").item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (float, np.floating)) and type_name == "numeric":
        return Decimal(str(value))  # psycopg leaves the choice of digits to others
    return value


def encode_chunks(
    encoder: ChunkEncoder, ids: Any, vectors: NDArray[Any], fields: Mapping[Column, Any]
) -> Generator[Future[Chunk], None, None]:
    """Yield the chunks in order, as results to be waited for.

    Other threads encode the next ones while the caller sends the last one: two of them, as
    encoding a row takes about as long as the server takes to store it (benchmarks/ingest.py).
    Closing the generator early drops the chunks that were not begun.
    """
    n = len(vectors)
    rows = max(1, CHUNK_NBYTES // (4 * vectors.shape[1]))

    def encode(start: int) -> Chunk:
        chunk = slice(start, min(start + rows, n))
        part = {column: values[chunk] for column, values in fields.items()}
        return encoder.encode(start, None if ids is None else ids[chunk], vectors[chunk], part)

    pool = ThreadPoolExecutor(THREADS)
    try:
        pending: deque[Future[Chunk]] = deque()
        for start in range(0, n, rows):
            pending.append(pool.submit(encode, start))
            if len(pending) > THREADS:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def take_sample(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return up to SAMPLE_ROWS rows, spread evenly over all.

    Rows that are not finite are passed over: encoding names them.
    """
    with np.errstate(over="ignore"):
        sample = np.asarray(vectors[spread(len(vectors), SAMPLE_ROWS)], np.float32)
    return sample[np.isfinite(sample).all(axis=1)]


@contextmanager
def show_progress(
    total: int | None, label: str, wanted: bool | None
) -> Iterator[Callable[[int], None]]:
    """Give a function to be told of rows done; a bar on stderr if wanted, or on a terminal."""
    if wanted is None:
        wanted = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    if not wanted:
        yield lambda rows: None
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda rows: bar.advance(task, rows)
