"""Table: vectors with their codes in PostgreSQL; create, ingest, search, status."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psycopg import Connection, DataError, ProgrammingError, sql
from psycopg.adapt import Dumper
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import dict_row, tuple_row
from psycopg.types import TypeInfo

from pybq._copy import HEADER, TRAILER
from pybq._core import nbytes
from pybq.errors import ExtensionMissingError, TableError
from pybq.ingest import ChunkEncoder, Column, encode_chunks, show_progress, take_sample
from pybq.psycopg import register_bq
from pybq.quantizer import Quantizer
from pybq.statistics import Statistics
from pybq.strategy import MIN_ROWS, choose, probe

Metric = Literal["cosine", "l2", "inner_product"]
Store = Literal["halfvec", "vector"]

# The same sign means the same distance on codes and on pgvector's types.
OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}
ITEM_NBYTES = {"halfvec": 2, "vector": 4}

# Bytes of a row that fit a page of 8 kB: PostgreSQL, heaptoast.h, TOAST_TUPLE_TARGET_MAIN.
MAX_ROW_NBYTES = 8160
# Rows above this many bytes are moved out of line unless told otherwise: TOAST_TUPLE_TARGET.
TOAST_NBYTES = 2032
# What the other columns of a row need at least: tuple header, id, vector headers.
ROW_OVERHEAD_NBYTES = 64
# A further column, large as it may be: a TOAST pointer, or a short value.
EXTRA_COLUMN_NBYTES = 24


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


@dataclass(frozen=True, slots=True)
class Status:
    """What is known about a table; `str()` of it is for people.

    Attributes
    ----------
    name : str
        Name of the table.
    dim : int
        Number of dimensions.
    metric : str
        "cosine", "l2" or "inner_product".
    store : str or None
        Type of the stored vectors; None: codes only.
    count : int
        Rows ingested through pybq so far.
    transform : int or None
        0: codes on the original axes, otherwise the number of the rotation; None before the
        first ingest.
    f_axis, f_rotate : float or None
        Fidelity of codes, predicted when `transform` was decided: the correlation of estimated
        with true inner products on the original axes, and after a rotation.
    reason : str or None
        Why, in words.
    decided_count : int or None
        Rows it was decided from.
    decided_at : datetime or None
    """

    name: str
    dim: int
    metric: str
    store: str | None
    count: int
    transform: int | None
    f_axis: float | None
    f_rotate: float | None
    reason: str | None
    decided_count: int | None
    decided_at: datetime | None

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.count:,} rows x {self.dim} dimensions, metric {self.metric}",
            f"vectors: {self.store or 'not stored, codes only'}",
        ]
        if self.transform is None:
            lines.append("codes: none yet, the first ingest decides between axes and rotation")
        else:
            axes = f"after rotation {self.transform}" if self.transform else "on the original axes"
            lines.append(f"codes: {axes}")
            lines.append(f"why: {self.reason}")
        return "\n".join(lines)


class Table:
    """A table of vectors that is searched by 2-bit codes.

    Opens the table; creates it first if there is none and `dim` is given.

    Parameters
    ----------
    conn : psycopg.Connection
        In a database with the extension `bq`, and `vector` if vectors are stored.
    name : str
        Name of the table, as it is: no quotes, no schema in it.
    dim : int, optional
        Number of dimensions. Needed to create; if the table exists, it must agree.
    metric : {"cosine", "l2", "inner_product"}, optional
        Which rows are nearest. "cosine" for a new table unless told; if the table exists and it
        is given, it must agree.
    schema : str, optional
        Schema of the table; else the search path decides.
    **options
        Further options of `create`, used only if the table is created.

    Raises
    ------
    TableError
        If there is no such table and no `dim`, if it is not one made by `create`, or if it
        does not agree with what was asked.
    ExtensionMissingError
        If the database lacks `bq`, or `vector` and vectors are to be stored.

    Notes
    -----
    The table has a primary key `id`, the vectors in `embedding` unless it keeps codes only, the
    codes in `code`, and what else was asked for; other clients may read and write it as any table.
    What pybq has learned of it is in the extension's table `bq_columns`.

    All methods join the transaction that is open on `conn`, or make one of their own.

    Examples
    --------
    >>> import numpy as np
    >>> import psycopg
    >>> import pybq
    >>> vectors = np.random.default_rng(7).standard_normal((1000, 64), dtype=np.float32)
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     table = pybq.Table(conn, "items", dim=64, metric="cosine")
    ...     rows = table.ingest(range(1000), vectors)
    ...     hits = table.search(vectors[42], k=10)
    >>> rows, hits[0].id, round(hits[0].distance, 3)
    (1000, 42, 0.0)
    """

    _quantizer: Quantizer | None  # what made the codes; None: not known yet

    def __init__(
        self,
        conn: Connection[Any],
        name: str,
        dim: int | None = None,
        metric: Metric | None = None,
        *,
        schema: str | None = None,
        **options: Any,
    ) -> None:
        self._conn = conn
        self.name = name
        self._identifier = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        register_bq(conn)
        if not self._exists():
            if dim is None:
                raise TableError(f"no table {name!r}; give dim to create it")
            _create(conn, self._identifier, dim, metric or "cosine", **options)
        self._open()
        for what, found, asked in (("dim", self.dim, dim), ("metric", self.metric, metric)):
            if asked is not None and asked != found:
                raise TableError(f"table {name!r} has {what} {found}, expected {asked}")

    @classmethod
    def create(
        cls,
        conn: Connection[Any],
        name: str,
        dim: int,
        metric: Metric = "cosine",
        *,
        store: Store | None = "halfvec",
        columns: Mapping[str, str] | None = None,
        id_type: str = "bigint",
        transform: int | None = None,
        schema: str | None = None,
    ) -> Table:
        """Create a table, and open it.

        Parameters
        ----------
        conn, name, dim, metric, schema
            As for `Table`.
        store : {"halfvec", "vector"} or None
            pgvector's type to keep the vectors in, for exact order after the codes have found
            the candidates: two or four bytes per dimension beside the code's quarter. With None
            only codes are kept.
        columns : mapping of str to str, optional
            Further columns: name to SQL type, e.g. ``{"title": "text"}``.
        id_type : str
            SQL type of the primary key `id`.
        transform : int, optional
            0 to encode on the original axes, another number for that rotation. Left out, the
            first ingest decides from the data.

        Returns
        -------
        Table

        Raises
        ------
        psycopg.errors.DuplicateTable
            If there is one of that name.
        ValueError
            If dim, metric, store or transform is out of range, or a column or type is not usable.
        ExtensionMissingError
            As for `Table`.
        """
        register_bq(conn)
        identifier = sql.Identifier(schema, name) if schema else sql.Identifier(name)
        _create(conn, identifier, dim, metric, store, columns, id_type, transform)
        return cls(conn, name, schema=schema)

    # -- writing ---------------------------------------------------------------------

    def ingest(
        self,
        ids: Sequence[Any] | NDArray[Any],
        vectors: ArrayLike,
        columns: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
        *,
        progress: bool | None = None,
    ) -> int:
        """Encode vectors and write them with their codes, all rows or none.

        The first ingest decides between the original axes and rotation, from up to 20,000 rows
        spread evenly over it; the decision is kept in `bq_columns` and holds for all later rows.
        Statistics of every row are added there, so that several writers at once lose nothing.

        Parameters
        ----------
        ids : sequence or ndarray, shape (n,)
            Values of the primary key.
        vectors : array_like of float32, float16 or float64, shape (n, dim)
            Finite values. A memory-mapped array is read chunk by chunk, so memory stays constant.
        columns : mapping of str to sequence, optional
            Values of further columns, n of each; None is NULL.
        progress : bool, optional
            Show a progress bar on stderr; left out, if it is a terminal.

        Returns
        -------
        int
            Number of rows written.

        Raises
        ------
        RowError
            If a vector holds NaN or infinity or is too long; has the row and its id.
        ValueError, TypeError
            If shapes or columns do not match the table.
        psycopg.Error
            As the server says, e.g. UniqueViolation with the id that is there already.

        Notes
        -----
        Nothing is written unless all rows are: it is one transaction, or a savepoint of the one
        that is open. To keep what came before a mistake, ingest in several calls. The statistics
        are added last, so others wait for each other only at the end; the first ingest of a
        table makes others wait until it has finished.
        """
        array = self._as_vectors(vectors)
        n = len(array)
        values = self._check_columns(n, ids, columns or {})
        if n == 0:
            return 0
        extra = [self._columns[name] for name in values]
        target = [self._id_column, *self._stored_columns, self._code_column, *extra]
        copy = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT binary)").format(
            self._identifier,
            sql.SQL(", ").join(sql.Identifier(column.name) for column in target),
        )
        with self._conn.transaction():
            quantizer = Quantizer(self.dim, self._decide(array))
            statistics = self._no_statistics()
            encoder = ChunkEncoder(
                quantizer,
                statistics.normalize,
                self.store,
                self._id_column,
                extra,
                self._conn,
            )
            with (
                show_progress(n, f"ingest {self.name}", progress) as advance,
                self._conn.cursor() as cursor,
                cursor.copy(copy) as stream,
            ):
                stream.write(HEADER)
                for chunk in encode_chunks(encoder, ids, array, values):
                    stream.write(chunk.data)
                    statistics.merge(chunk.statistics)
                    advance(chunk.rows)
                stream.write(TRAILER)
            self._add_statistics(statistics)
        self._quantizer = quantizer
        return n

    def create_index(self) -> None:
        """Build the index `USING bq` over the codes: faster searches in large tables.

        Raises
        ------
        psycopg.errors.UndefinedObject
            If the installed extension has no access method `bq`; searches work all the same.
        """
        with self._conn.transaction():
            self._conn.execute(
                sql.SQL("CREATE INDEX ON {} USING bq ({})").format(
                    self._identifier, sql.Identifier(self._code_column.name)
                )
            )

    # -- reading ---------------------------------------------------------------------

    def search(
        self,
        query: ArrayLike,
        k: int = 10,
        rerank: float | None = 4,
        columns: Sequence[str] = (),
    ) -> Any:
        """Find the nearest rows: candidates by code, then in exact order by the stored vector.

        Parameters
        ----------
        query : array_like of float, shape (dim,) or (q, dim)
            One query, or several.
        k : int
            Number of rows wanted.
        rerank : float or None
            Candidates that the codes find, as a multiple of k, to be put in exact order. More
            cost time and find more: 4 finds at least 98 of the true 100 on text embeddings
            (`make demo`). With None, and in tables that keep codes only, the order is that
            of the codes.
        columns : sequence of str
            Further columns to return.

        Returns
        -------
        list of Hit, or list of list of Hit
            At most k per query, nearest first; a list of them for several queries.

        Raises
        ------
        ValueError
            If the shape does not match, a value is not finite, k < 1 or rerank < 1, or there is
            no such column.
        """
        array = np.asarray(query)
        if array.ndim not in (1, 2) or array.shape[-1] != self.dim:
            raise ValueError(
                f"expected a query of shape ({self.dim},) or (q, {self.dim}), got {array.shape}"
            )
        if k < 1:
            raise ValueError(f"expected k of at least 1, got {k}")
        if rerank is not None and rerank < 1:
            raise ValueError(f"expected rerank of at least 1, got {rerank}")
        for name in columns:
            if name not in self._columns:
                raise ValueError(f"no column {name!r} in table {self.name!r}")
        exact = array.astype(np.float32, copy=False)
        quantizer = self._current_quantizer()
        if quantizer is None:  # nothing ingested
            return [] if array.ndim == 1 else [[] for _ in array]

        statement = self._search_statement(k, rerank, tuple(columns))
        parameters = [
            {"query": quantizer.query(row), "exact": _Vector(row)} for row in np.atleast_2d(exact)
        ]
        found = [
            [Hit(row[0], row[1], dict(zip(columns, row[2:], strict=True))) for row in rows]
            for rows in self._search(statement, parameters)
        ]
        return found[0] if array.ndim == 1 else found

    def status(self) -> Status:
        """What the database knows about the table: see `Status`."""
        with _reading(self._conn), self._conn.cursor(row_factory=dict_row) as cursor:
            known = cursor.execute(
                """
                SELECT dim, metric, coalesce((statistics).count, 0) AS count, transform, f_axis,
                       f_rotate, reason, decided_count, decided_at
                FROM bq_columns WHERE table_name = %s AND code_column = %s
                """,
                [self._oid, self._code_column.name],
            ).fetchone()
        if known is None:
            raise TableError(f"table {self.name!r} is gone from bq_columns")
        if known["decided_at"] is None:
            known["transform"] = None
        return Status(name=self.name, store=self.store, **known)

    # -- details ---------------------------------------------------------------------

    def _exists(self) -> bool:
        row = self._fetch_one("SELECT to_regclass(%s)", [self._identifier.as_string(self._conn)])
        return row is not None and row[0] is not None

    def _open(self) -> None:
        """Read from the catalog which columns there are, and what bq_columns says of them."""
        oid = self._fetch_one("SELECT %s::regclass::oid", [self._identifier.as_string(self._conn)])
        assert oid is not None
        self._oid: int = oid[0]
        managed = self._fetch_one(
            "SELECT code_column, source_column, dim, metric FROM bq_columns WHERE table_name = %s",
            [self._oid],
        )
        if managed is None:
            raise TableError(f"table {self.name!r} has no codes that pybq made; use Table.create")
        code, source, self.dim, self.metric = managed
        with _reading(self._conn), self._conn.cursor(row_factory=tuple_row) as cursor:
            attributes = cursor.execute(
                """
                SELECT a.attname, t.typname, t.oid, coalesce(a.attnum = i.indkey[0], false)
                FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                LEFT JOIN pg_index i
                    ON i.indrelid = a.attrelid AND i.indisprimary AND i.indnkeyatts = 1
                WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
                """,
                [self._oid],
            ).fetchall()
        every = {name: Column(name, kind, oid) for name, kind, oid, _ in attributes}
        keys = [name for name, _, _, primary in attributes if primary]
        if len(keys) != 1:
            raise TableError(f"table {self.name!r} has no primary key of one column")
        self._id_column = every.pop(keys[0])
        self._code_column = every.pop(code)
        self._stored_columns = [] if source is None else [every.pop(source)]
        self.store: str | None = self._stored_columns[0].type_name if self._stored_columns else None
        self._columns = every
        if self._stored_columns:
            stored = self._stored_columns[0]
            self._vector_dumper = _make_vector_dumper(stored.type_name, stored.type_oid)
        self._quantizer = None
        self._statements: dict[tuple[Any, ...], str] = {}

    def _as_vectors(self, vectors: ArrayLike) -> NDArray[Any]:
        array = np.asarray(vectors)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"expected vectors of float32, got dtype {array.dtype}")
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ValueError(f"expected vectors of shape (n, {self.dim}), got {array.shape}")
        return array

    def _check_columns(self, n: int, ids: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
        for name in columns:
            if name not in self._columns:
                raise ValueError(f"no column {name!r} in table {self.name!r}")
        for name, values in {"ids": ids, **columns}.items():
            if len(values) != n:
                raise ValueError(f"{name}: expected {n} values, got {len(values)}")
        return dict(columns)

    def _decide(self, vectors: NDArray[Any]) -> int:
        """Return the table's transform; decide it now if no ingest has done so.

        Takes the row lock in bq_columns while undecided: whoever comes second waits until the
        first has committed, and then follows it.
        """
        for lock in ("", "FOR UPDATE"):
            row = self._fetch_one(
                "SELECT transform, decided_at IS NOT NULL FROM bq_columns"
                f" WHERE table_name = %s AND code_column = %s {lock}",
                [self._oid, self._code_column.name],
            )
            if row is None:
                raise self._not_owner()
            transform, decided = row
            if decided:
                return int(transform)
        statistics = self._no_statistics()
        sample = take_sample(vectors)
        statistics.update(sample)
        measured = probe(sample, metric=self.metric) if len(sample) >= MIN_ROWS else None
        decision = choose(statistics, measured)
        self._conn.execute(
            """
            UPDATE bq_columns SET transform = %s, f_axis = %s, f_rotate = %s, reason = %s,
                decided_count = %s, decided_at = now()
            WHERE table_name = %s AND code_column = %s
            """,
            [
                decision.transform,
                _finite(decision.f_axis),
                _finite(decision.f_rotate),
                decision.reason,
                statistics.count,
                self._oid,
                self._code_column.name,
            ],
        )
        return decision.transform

    def _not_owner(self) -> TableError:
        # Row security hides the row of bq_columns from others, or keeps them from changing it.
        return TableError(
            f"only the owner of table {self.name!r} can ingest: the statistics are theirs"
        )

    def _no_statistics(self) -> Statistics:
        # Cosine distance does not see the lengths of vectors, so neither must the statistics.
        return Statistics(self.dim, normalize=self.metric == "cosine")

    def _add_statistics(self, statistics: Statistics) -> None:
        """Merge in the database, under the row's lock: what others added meanwhile stays."""
        row = statistics.to_row()
        fields = ", ".join(["%b"] * len(row))
        updated = self._conn.execute(
            f"""
            UPDATE bq_columns SET statistics = bq_merge(statistics, ROW({fields})::bq_statistics)
            WHERE table_name = %s AND code_column = %s
            """.encode(),
            [*row, self._oid, self._code_column.name],
        )
        if updated.rowcount != 1:
            raise self._not_owner()

    def _current_quantizer(self) -> Quantizer | None:
        """Return what made the codes, None before the first ingest.

        The database is asked once: the transform stays, and codes of another one would be an
        error of the server, never a wrong answer.
        """
        if self._quantizer is None:
            transform = self.status().transform
            if transform is not None:
                self._quantizer = Quantizer(self.dim, transform)
        return self._quantizer

    def _search_statement(self, k: int, rerank: float | None, columns: tuple[str, ...]) -> str:
        """Return the query for this k.  Its text is always the same, so psycopg prepares it.

        Limits are written out: with parameters a generic plan would guess them.
        """
        known = self._statements.get((k, rerank, columns))
        if known is not None:
            return known

        def quote(identifier: sql.Identifier) -> sql.SQL:
            return sql.SQL(identifier.as_string(self._conn).replace("%", "%%"))

        extra = [sql.SQL(", {}").format(quote(sql.Identifier(name))) for name in columns]
        names = {
            "id": quote(sql.Identifier(self._id_column.name)),
            "code": quote(sql.Identifier(self._code_column.name)),
            "table": quote(self._identifier),
            "operator": sql.SQL(OPERATORS[self.metric]),
            "extra": sql.SQL("").join(extra),
            "k": sql.Literal(k),
        }
        if rerank is None or not self._stored_columns:
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
                vector=quote(sql.Identifier(self._stored_columns[0].name)),
                candidates=sql.Literal(math.ceil(k * rerank)),
                **names,
            )
        text = statement.as_string(self._conn)
        self._statements[k, rerank, columns] = text
        return text

    def _search(
        self, statement: str, parameters: list[dict[str, Any]]
    ) -> list[list[tuple[Any, ...]]]:
        """Run one query per set of parameters, several of them in one pipeline."""
        with _reading(self._conn), ExitStack() as stack:
            if len(parameters) > 1:
                stack.enter_context(self._conn.pipeline())
            cursors = []
            for values in parameters:
                cursor = stack.enter_context(self._conn.cursor(row_factory=tuple_row))
                if self._stored_columns:
                    cursor.adapters.register_dumper(_Vector, self._vector_dumper)
                cursors.append(cursor.execute(statement.encode(), values))
            return [cursor.fetchall() for cursor in cursors]

    def _fetch_one(self, query: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        with _reading(self._conn), self._conn.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(query.encode(), parameters).fetchone()


def _create(
    conn: Connection[Any],
    identifier: sql.Identifier,
    dim: int,
    metric: str,
    store: str | None = "halfvec",
    columns: Mapping[str, str] | None = None,
    id_type: str = "bigint",
    transform: int | None = None,
) -> None:
    """Create the table, and its row in bq_columns."""
    Quantizer(dim, transform or 0)  # checks both
    if metric not in OPERATORS:
        raise ValueError(f"expected metric of {', '.join(OPERATORS)}, got {metric!r}")
    if store is not None and store not in ITEM_NBYTES:
        raise ValueError(f"expected store of {', '.join(ITEM_NBYTES)} or None, got {store!r}")
    columns = columns or {}
    for name in columns:
        if name in ("id", "embedding", "code"):
            raise ValueError(f"column {name!r} is the table's own; choose another name")
    types = {"id": id_type, **columns}
    with conn.transaction():
        for name, type_name in types.items():
            _check_type(conn, name, type_name)
        if store is not None and TypeInfo.fetch(conn, store) is None:
            raise ExtensionMissingError(
                f'type "{store}" not found; run CREATE EXTENSION vector, or keep codes only '
                "with store=None"
            )
        lines = [sql.SQL("id {} PRIMARY KEY").format(sql.SQL(id_type))]
        # The code first: what a scan reads of a row then lies together.
        lines.append(sql.SQL("code bqvec({}) NOT NULL").format(dim))
        if store is not None:
            lines.append(sql.SQL("embedding {}({}) NOT NULL").format(sql.SQL(store), dim))
        lines += [
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_name))
            for name, type_name in columns.items()
        ]
        # A type ends with its line, whatever comment it may hold.
        conn.execute(
            sql.SQL("CREATE TABLE {} (\n{}\n)").format(identifier, sql.SQL("\n,").join(lines))
        )
        if store is not None:
            _keep_inline(conn, identifier, dim, store, len(columns))
        conn.execute(
            """
            INSERT INTO bq_columns (table_name, code_column, source_column, dim, metric, transform,
                                    reason, decided_count, decided_at)
            VALUES (%s::regclass, 'code', %s, %s, %s, %s, %s, %s, CASE WHEN %s THEN now() END)
            """,
            [
                identifier.as_string(conn),
                None if store is None else "embedding",
                dim,
                metric,
                transform or 0,
                None if transform is None else "set when the table was created",
                None if transform is None else 0,
                transform is not None,
            ],
        )


def _check_type(conn: Connection[Any], name: str, type_name: str) -> None:
    """Refuse what is not the name of a type: it goes into CREATE TABLE as it is."""
    try:
        with conn.transaction():
            cursor = conn.cursor(row_factory=tuple_row)
            row = cursor.execute("SELECT to_regtype(%s)", [type_name]).fetchone()
    except (ProgrammingError, DataError):
        row = None
    if row is None or row[0] is None:
        raise ValueError(f"column {name!r}: no type {type_name!r} in the database")


def _keep_inline(
    conn: Connection[Any], identifier: sql.Identifier, dim: int, store: str, extra: int
) -> None:
    """Keep the vector in its row if the row fits a page.

    Re-ranking reads a few vectors per query: 0.2 to 0.8 us each from the row, 3 to 7 us out of
    line (TOAST), where pgvector's types go by default once a row has more than 2 kB.
    """
    row_nbytes = (
        ROW_OVERHEAD_NBYTES + ITEM_NBYTES[store] * dim + nbytes(dim) + EXTRA_COLUMN_NBYTES * extra
    )
    if row_nbytes > MAX_ROW_NBYTES:
        return
    conn.execute(
        sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(identifier)
    )
    if row_nbytes > TOAST_NBYTES:
        # Else all other columns would be moved out of each row in a vain attempt to shorten it.
        conn.execute(
            sql.SQL("ALTER TABLE {} SET (toast_tuple_target = {})").format(
                identifier, MAX_ROW_NBYTES
            )
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Vector:
    """A query vector on its way to a column of pgvector's types."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values


def _make_vector_dumper(type_name: str, type_oid: int) -> type[Dumper]:
    """Return a dumper to the wire form of `vector` or `halfvec`; pgvector's package not needed."""

    class VectorDumper(Dumper):
        format = Format.BINARY
        oid = type_oid

        def dump(self, obj: _Vector) -> bytes:
            header = struct.pack("!HH", len(obj.values), 0)
            with np.errstate(over="ignore"):  # the server reports infinity
                return header + obj.values.astype(f">f{ITEM_NBYTES[type_name]}").tobytes()

    return VectorDumper


@contextmanager
def _reading(conn: Connection[Any]) -> Iterator[None]:
    """Leave no transaction open that was not: a later ingest would then not be committed."""
    if conn.autocommit or conn.info.transaction_status != TransactionStatus.IDLE:
        yield
    else:
        with conn.transaction():
            yield
