"""What Table and AsyncTable have in common.

An operation on a table is a coroutine function that is written, and described, once: in `reading`
or `writing`. `blocking` and `awaited` make a method of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from psycopg import sql

from pybq._catalog.database import AsyncDatabase, Database, run
from pybq._catalog.layout import Layout
from pybq._catalog.registry import read_transform
from pybq._codes.metric import Metric
from pybq._codes.quantizer import Quantizer
from pybq._searching.calibrate import find_effort, not_calibrated
from pybq._searching.search import Effort, Writer

if TYPE_CHECKING:
    from typing import Concatenate

    from typing_extensions import ParamSpec

    _P = ParamSpec("_P")

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., object])

# For so long a calibration that was read is used.
KEEP_SECONDS = 60


class BaseTable:
    """What is known of a table, and remembered for its searches."""

    _db: Database

    def _open(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout
        self._writer = Writer(layout, db.connection)
        self._forget()

    def _forget(self) -> None:
        """Forget what holds for the codes of one transform only."""
        self._quantizer: Quantizer | None = None  # what made the codes; None: not known yet
        # (recall, k) -> what was calibrated, and when it was read: others may measure anew
        self._efforts: dict[tuple[float, int], tuple[Effort, float]] = {}

    def __repr__(self) -> str:
        schema = self._layout.named_schema
        name = self.name if schema is None else f"{schema}.{self.name}"
        kept = [] if self.store is None else [self.store]
        if self._layout.has_codes:
            kept.append(f"codes in {self.code_column}")
        return (
            f"<pybq.{type(self).__name__} {name}: {self.dim} dimensions, "
            f"{', '.join([self.metric, *kept])}>"
        )

    @property
    def name(self) -> str:
        """Name of the table."""
        return self._layout.name

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._layout.dim

    @property
    def metric(self) -> Metric:
        """The metric, "cosine", "l2" or "inner_product"."""
        return self._layout.metric

    @property
    def store(self) -> str | None:
        """Type of the stored vectors, None if there are only codes."""
        return self._layout.store

    @property
    def identifier(self) -> sql.Identifier:
        """The table's name, with its schema, to compose SQL with."""
        return self._layout.identifier

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the columns of the primary key; ctid, the place of a row, if there is none."""
        return tuple(column.name for column in self._layout.key)

    @property
    def code_column(self) -> str | None:
        """Name of the column of codes, None if searches use an index on the vectors."""
        return self._layout.searched.name if self._layout.has_codes else None

    @property
    def source_column(self) -> str | None:
        """Name of the column of vectors, None if there are only codes."""
        return None if self._layout.source is None else self._layout.source.name

    @property
    def columns(self) -> Mapping[str, str]:
        """SQL types of further columns by name, as in pg_type."""
        return MappingProxyType({n: c.declared for n, c in self._layout.columns.items()})

    async def _find_quantizer(self) -> Quantizer | None:
        """Return what made the codes, None before the first ingest, and if there are none.

        The database is asked once. A query for codes of another transform is an error of the
        server, never a wrong answer.
        """
        if self._quantizer is None and self._layout.has_codes:
            transform = await read_transform(self._db, self._layout)
            if transform is not None:
                self._quantizer = Quantizer(self.dim, transform)
        return self._quantizer

    async def _find_effort(self, quantizer: Quantizer, recall: float, k: int) -> Effort:
        """Return what was calibrated, as the database has had it within the last minute."""
        known, read_at = self._efforts.get((recall, k), (None, -math.inf))
        now = time.monotonic()
        if known is None or now - read_at > KEEP_SECONDS:
            found = await find_effort(self._db, self._layout, quantizer.transform, recall, k)
            known = found or known  # which could not be kept in the database
            if known is None:
                raise not_calibrated(self._layout, recall, k)
            self._efforts[recall, k] = known, now
        return known


def blocking(
    operation: Callable[Concatenate[BaseTable, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[BaseTable, _P], _T]:
    """Make a method of Table of an operation: it returns when that is done."""

    @wraps(operation)
    def method(table: BaseTable, /, *arguments: _P.args, **options: _P.kwargs) -> _T:
        return run(operation(table, *arguments, **options))

    return method


def overloads_of(method: Callable[..., object]) -> Callable[[_F], _F]:
    """Put a method in the place of a function that only has its overloads, for type checkers."""

    def replace(overloaded: _F) -> _F:
        return cast(_F, method)

    return replace


def awaited(
    operation: Callable[Concatenate[BaseTable, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[BaseTable, _P], Coroutine[Any, Any, _T]]:
    """Make a method of AsyncTable of an operation: it waits for its turn on the connection."""

    @wraps(operation)
    async def method(table: BaseTable, /, *arguments: _P.args, **options: _P.kwargs) -> _T:
        assert isinstance(table._db, AsyncDatabase)
        return await table._db.run(operation(table, *arguments, **options))

    return method
