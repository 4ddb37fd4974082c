"""Arrays of ids, vectors and further columns -> the bytes of a binary COPY, chunk by chunk."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format

from pybq._copy import HEADER, TRAILER, encode_rows, to_half
from pybq.errors import RowError
from pybq.quantizer import Quantizer
from pybq.statistics import Statistics

# float32 bytes of the vectors of one chunk.  Larger ones were no faster (benchmarks/ingest.py).
CHUNK_NBYTES = 1 << 20
THREADS = 2
# Rows from which axes or rotation is decided, spread evenly over the first ingest: enough that
# the fidelities of another sample differ by less than the margin of the choice.
SAMPLE_ROWS = 20_000

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
    "bytea": "bytea",
    "uuid": "uuid",
}
NUMBERS = ("int2", "int4", "int8", "float4", "float8")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its name, and its type as PostgreSQL has it."""

    name: str
    type_name: str  # pg_type.typname
    type_oid: int


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
    quantizer : Quantizer
        Makes the codes.
    normalize : bool
        Scale vectors to norm 1 for their statistics.
    store : {"halfvec", "vector"} or None
        How the vectors themselves are kept; None keeps codes only.
    id_column : Column
        The primary key.
    extra : sequence of Column
        Further columns.  COPY order: id, the vector if it is kept, the code, these.
    connection : psycopg.Connection
        Where its adapters are looked up; nothing is sent.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        normalize: bool,
        store: str | None,
        id_column: Column,
        extra: Sequence[Column],
        connection: Connection[Any],
    ) -> None:
        self.quantizer = quantizer
        self.normalize = normalize
        self.store = store
        self.id_column = id_column
        self.extra = extra
        self._connection = connection

    def encode(
        self, start: int, ids: Any, vectors: NDArray[Any], extra: Mapping[str, Any]
    ) -> Chunk:
        """Encode one chunk, whose first row is row `start` of the ingest."""
        stored, exact = stored_vectors(vectors, self.store, start, ids)
        try:
            codes = self.quantizer.encode(exact)
        except ValueError:
            raise self._bad_row(start, ids, exact) from None
        statistics = Statistics(self.quantizer.dim, self.normalize)
        statistics.update(exact)

        fields = [copy_column(self.id_column, ids, start, self._connection)]
        if self.store is not None:
            fields.append((self.store, stored))
        fields.append(("bqvec", codes))
        fields += [copy_column(c, extra[c.name], start, self._connection) for c in self.extra]
        data = b"".join(part for part in encode_rows(fields) if part not in (HEADER, TRAILER))
        return Chunk(len(vectors), data, statistics)

    def _bad_row(self, start: int, ids: Any, vectors: NDArray[np.float32]) -> RowError:
        for i, vector in enumerate(vectors):
            try:
                self.quantizer.encode(vector)
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
    key = list(ids)[row]
    return RowError(start + row, key.item() if isinstance(key, np.generic) else key, reason)


def copy_column(
    column: Column, values: Any, start: int, connection: Connection[Any]
) -> tuple[Any, ...]:
    """Return what the COPY encoder takes for some rows of one column: kind, values, NULL mask."""
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


def dump_values(
    column: Column, values: Any, start: int, connection: Connection[Any]
) -> list[bytes | None]:
    """Return the wire form of each value, by psycopg's dumper of the column's type."""
    transformer = Transformer(connection)
    transformer.set_dumper_types([column.type_oid], Format.BINARY)
    dumped: list[bytes | None] = []
    for i, value in enumerate(values):
        try:
            (field,) = transformer.dump_sequence([value], [PyFormat.BINARY])
        except Exception as error:
            raise TypeError(
                f"column {column.name!r} of type {column.type_name}, row {start + i}: {error}"
            ) from error
        dumped.append(None if field is None else bytes(field))
    return dumped


def encode_chunks(
    encoder: ChunkEncoder, ids: Any, vectors: NDArray[Any], extra: Mapping[str, Any]
) -> Iterator[Chunk]:
    """Yield the chunks in order.

    Other threads encode the next ones while the caller sends the last one: two of them, as
    encoding a row takes about as long as the server takes to store it (benchmarks/ingest.py).
    """
    n = len(vectors)
    rows = max(1, CHUNK_NBYTES // (4 * encoder.quantizer.dim))

    def encode(start: int) -> Chunk:
        chunk = slice(start, min(start + rows, n))
        part = {name: values[chunk] for name, values in extra.items()}
        return encoder.encode(start, ids[chunk], vectors[chunk], part)

    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[Chunk]] = deque()
        for start in range(0, n, rows):
            pending.append(pool.submit(encode, start))
            if len(pending) > THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def take_sample(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return up to SAMPLE_ROWS rows, spread evenly over all.

    Rows that are not finite are passed over: encoding names them.
    """
    rows = np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE_ROWS)).astype(np.int64)
    with np.errstate(over="ignore"):
        sample = np.asarray(vectors[rows], np.float32)
    return sample[np.isfinite(sample).all(axis=1)]


@contextmanager
def show_progress(total: int, label: str, wanted: bool | None) -> Iterator[Callable[[int], None]]:
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
