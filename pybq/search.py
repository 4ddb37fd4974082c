"""Searching a table: the statement, the query's way to the server, and what comes back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from psycopg import BaseConnection, sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from pybq.database import Database, Row
from pybq.quantizer import Quantizer
from pybq.schema import ITEM_NBYTES, OPERATORS, Column, Layout


@dataclass(frozen=True, slots=True)
class Hit:
    """One found row. Further columns are read as `hit["name"]`.

    Attributes
    ----------
    id : Any
        Value of the primary key.
    distance : float
        What the operator of the table's metric gives: cosine distance, Euclidean distance, or the
        negative inner product. Exact if the table stores vectors and the search was re-ranked,
        else that of the code.
    columns : dict
        The further columns that were asked for.
    """

    id: Any
    distance: float
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]


class Search:
    """One call of `Table.search`, its arguments checked."""

    def __init__(
        self,
        layout: Layout,
        query: ArrayLike,
        k: int,
        rerank: float | None,
        columns: Sequence[str],
    ) -> None:
        array = np.asarray(query)
        dim = layout.dim
        if array.ndim not in (1, 2) or array.shape[-1] != dim:
            raise ValueError(f"expected a query of shape ({dim},) or (q, {dim}), got {array.shape}")
        if k < 1:
            raise ValueError(f"expected k of at least 1, got {k}")
        if rerank is not None and rerank < 1:
            raise ValueError(f"expected rerank of at least 1, got {rerank}")
        for name in columns:
            if name not in layout.columns:
                raise ValueError(f"no column {name!r} in table {layout.name!r}")
        self.layout = layout
        self.single = array.ndim == 1
        self.queries = np.atleast_2d(array.astype(np.float32, copy=False))
        self.k = k
        self.candidates = None if rerank is None else math.ceil(k * rerank)
        self.columns = tuple(columns)

    async def run(self, db: Database, quantizer: Quantizer | None) -> Any:
        """Ask the server.  Without a quantizer there are no codes yet, so nothing is found."""
        if quantizer is None:
            found: list[list[Row]] = [[] for _ in self.queries]
        else:
            statement = write_statement(
                self.layout, self.k, self.candidates, self.columns, db.connection
            )
            parameters = self._parameters(quantizer)
            if len(parameters) == 1:
                found = [await db.fetch(statement, parameters[0])]
            else:
                found = await db.fetch_each(statement, parameters)
        hits = [
            [Hit(row[0], row[1], dict(zip(self.columns, row[2:], strict=True))) for row in rows]
            for rows in found
        ]
        return hits[0] if self.single else hits

    def _parameters(self, quantizer: Quantizer) -> list[dict[str, Any]]:
        source = self.layout.source
        if source is None or self.candidates is None:
            return [{"query": quantizer.query(row)} for row in self.queries]
        wire = _WIRES[source.type_name]
        with np.errstate(over="ignore"):  # the server reports infinity
            exact = self.queries.astype(f">f{ITEM_NBYTES[source.type_name]}")
        header = struct.pack("!HH", self.layout.dim, 0)
        return [
            {"query": quantizer.query(row), "exact": wire(header + values.tobytes())}
            for row, values in zip(self.queries, exact, strict=True)
        ]


def write_statement(
    layout: Layout,
    k: int,
    candidates: int | None,
    columns: Sequence[str],
    connection: BaseConnection[Any],
) -> str:
    """Return the query for this k.  Its text is always the same, so psycopg prepares it.

    Limits are written out: with parameters a generic plan would guess them.
    """

    def quote(identifier: sql.Identifier) -> sql.SQL:
        return sql.SQL(identifier.as_string(connection).replace("%", "%%"))

    extra = [sql.SQL(", {}").format(quote(sql.Identifier(name))) for name in columns]
    names = {
        "id": quote(layout.id.identifier),
        "code": quote(layout.code.identifier),
        "table": quote(layout.identifier),
        "operator": sql.SQL(OPERATORS[layout.metric]),
        "extra": sql.SQL("").join(extra),
        "k": sql.Literal(k),
    }
    if candidates is None or layout.source is None:
        statement = sql.SQL(
            "SELECT {id}, {code} {operator} %(query)s AS distance{extra} FROM {table}"
            " ORDER BY {code} {operator} %(query)s LIMIT {k}"
        ).format(**names)
    else:
        statement = sql.SQL(
            "SELECT {id}, {vector} {operator} %(exact)s AS distance{extra}"
            " FROM (SELECT {id}, {vector}{extra} FROM {table}"
            " ORDER BY {code} {operator} %(query)s LIMIT {candidates}) AS candidates"
            " ORDER BY distance LIMIT {k}"
        ).format(
            vector=quote(layout.source.identifier), candidates=sql.Literal(candidates), **names
        )
    return statement.as_string(connection)


class _Wire:
    """A query vector in the wire form of pgvector's types; pgvector's package is not needed."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Vector(_Wire):
    __slots__ = ()


class _Halfvec(_Wire):
    __slots__ = ()


_WIRES: dict[str, type[_Wire]] = {"vector": _Vector, "halfvec": _Halfvec}


class _WireDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Wire) -> bytes:
        return obj.data


def register_vectors(connection: BaseConnection[Any], column: Column) -> None:
    """Adapt query vectors to the type of the column that stores vectors."""
    dumper = type("WireDumper", (_WireDumper,), {"oid": column.type_oid})
    connection.adapters.register_dumper(_WIRES[column.type_name], dumper)
