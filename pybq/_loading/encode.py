"""Rows -> chunks of binary COPY and their statistics, by several threads."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import BaseConnection, ProgrammingError
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format
from psycopg.types.json import Json, Jsonb

from pybq._catalog.layout import Column
from pybq._choice.statistics import Statistics
from pybq._codes import core
from pybq._codes.arrays import to_half
from pybq._codes.quantizer import Quantizer
from pybq._loading.copy import encode_rows
from pybq.errors import RowError

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
NUMBERS = ("int2", "int4", "int8", "float4", "float8")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Encoded rows: how many, their bytes in COPY, and their statistics if they were wanted."""

    rows: int
    data: bytes
    statistics: Statistics | None


class ChunkEncoder:
    """Turns chunks of rows into COPY bytes and statistics; several threads may use one.

    Parameters
    ----------
    quantizer : Quantizer or None
        Makes the codes; None: the table has none.
    store : {"halfvec", "vector"} or None
        How the vectors themselves are kept; None keeps codes only.
    connection : psycopg.BaseConnection
        Where its adapters are looked up; nothing is sent.
    normalize : bool or None
        Scale vectors to norm 1 for their statistics; None: collect none.
    missing : ndarray of bool, shape (n,), or None
        Rows of the whole ingest whose vector is NULL, whatever is in its place.
    """

    def __init__(
        self,
        quantizer: Quantizer | None,
        store: str | None,
        connection: BaseConnection[Any],
        normalize: bool | None = None,
        missing: NDArray[np.bool_] | None = None,
    ) -> None:
        self.quantizer = quantizer
        self.normalize = normalize
        self.store = store
        self.missing = missing
        self._connection = connection

    def encode(
        self, start: int, ids: Any, vectors: NDArray[Any], values: Mapping[Column, Any]
    ) -> Chunk:
        """Encode one chunk, whose first row is row `start` of the ingest.

        COPY order: the columns of `values`, the vector if it is kept, the code if there is one.
        """
        stored, exact = stored_vectors(vectors, self.store, start, ids)
        statistics = None
        made: list[tuple[Any, ...]] = [] if self.store is None else [(self.store, stored)]
        if self.missing is not None:
            made = [(*each, self.missing[start : start + len(vectors)]) for each in made]
        if self.quantizer is not None:
            try:
                made.append(("bqvec", self.quantizer.encode(exact)))
            except ValueError:
                raise self._bad_row(start, ids, exact) from None
            if self.normalize is not None:
                # one chunk in so many rows: each would begin with a window of its own
                window = core.window_start(start, vectors.shape[1])
                search = start <= window < start + len(vectors)
                statistics = Statistics(vectors.shape[1], self.normalize, search)
                statistics.update(exact)
        elif not np.isfinite(exact).all():
            raise self._bad_row(start, ids, exact)

        fields = {
            column: copy_column(column, each, start, self._connection)
            for column, each in values.items()
        }
        try:
            data = b"".join(encode_rows([*fields.values(), *made]))
        except (TypeError, ValueError):
            raise _bad_field(start, fields) from None
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
