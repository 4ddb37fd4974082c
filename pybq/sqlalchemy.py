"""SQLAlchemy 2: column types for codes and queries, their distances, and `nearest`.

What a model looks like, with pgvector's type beside ours; the server keeps the code in step with
the vector, and one index serves every distance:

>>> import numpy as np
>>> import pybq
>>> from pgvector.sqlalchemy import HALFVEC
>>> from sqlalchemy import Computed, Index, create_engine, select, text
>>> from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
>>> from pybq.sqlalchemy import BQVec, nearest
>>> class Base(DeclarativeBase):
...     pass
>>> class Item(Base):
...     __tablename__ = "items"
...     id: Mapped[int] = mapped_column(primary_key=True)
...     title: Mapped[str]
...     embedding: Mapped[list[float]] = mapped_column(HALFVEC(64))
...     code: Mapped[pybq.Code] = mapped_column(
...         BQVec(64, transform=1),
...         Computed("bq_encode(embedding::real[], 1)", persisted=True),
...     )
>>> index = Index("ix_items_code", Item.code, postgresql_using="bq")

>>> vectors = np.random.default_rng(7).standard_normal((500, 64))
>>> with pybq.serve() as server:
...     engine = create_engine(server.dsn.replace("postgresql:", "postgresql+psycopg:"))
...     Base.metadata.create_all(engine)
...     with Session(engine) as session:
...         session.add_all(
...             Item(id=i, title=f"item {i}", embedding=v) for i, v in enumerate(vectors)
...         )
...         by_code = select(Item.id).order_by(Item.code.cosine_distance(vectors[42])).limit(3)
...         print(session.scalars(by_code).first())
...         exact = nearest(Item, code=Item.code, vector=Item.embedding, query=vectors[42], k=3)
...         item, distance = session.execute(exact).first()
...         print(item.title, round(distance, 3))
...     engine.dispose()
42
item 42 0.0

The database needs `CREATE EXTENSION bq` (and `vector`) before the tables; `pybq.alembic` writes
it into migrations, and `pybq.serve()` has done it.
"""

# No `from __future__ import annotations`: doctest would hand it on to the model above, whose
# annotations SQLAlchemy would then look up in this module.

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import ArrayLike
from psycopg import BaseConnection, ProgrammingError
from psycopg.adapt import AdaptersMap, PyFormat

from pybq.errors import needed_by

with needed_by("pybq.sqlalchemy"):
    from sqlalchemy import (
        REAL,
        BindParameter,
        Double,
        Integer,
        Select,
        SQLColumnExpression,
        TextClause,
        bindparam,
        event,
        func,
        select,
        text,
        type_coerce,
    )
    from sqlalchemy import cast as sql_cast
    from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS
    from sqlalchemy.dialects.postgresql.base import ischema_names
    from sqlalchemy.engine import Dialect
    from sqlalchemy.orm import aliased
    from sqlalchemy.pool import Pool
    from sqlalchemy.sql import ColumnElement, FromClause
    from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

from pybq._codes.metric import OPERATORS, Metric, check_metric
from pybq._codes.quantizer import Quantizer, name_type, share_quantizer
from pybq._codes.vector import Code, Query
from pybq.psycopg import _BinaryDumper, _TextDumper

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    _Ts = TypeVarTuple("_Ts")

__all__ = ["BQQuery", "BQVec", "bq_encode", "bq_query", "nearest"]

_Value = TypeVar("_Value", Code, Query)
_Entity = TypeVar("_Entity")
# Values, or a column, a parameter or another expression of SQL.
_Vector: TypeAlias = ArrayLike | SQLColumnExpression[Any]


class _ValueType(UserDefinedType[_Value]):
    """What both types have in common: how a value goes to the server and comes back."""

    # Says what a parameter is, so that its dumper need not know the oid of the type.
    render_bind_cast = True
    _class: type[_Value]

    @property
    def python_type(self) -> type[_Value]:
        return self._class

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        # Binary wherever we can: a query of 1,536 floats takes 1 us instead of 750.
        binary = getattr(dialect, "driver", None) in ("psycopg", "psycopg_async")

        def process(value: Any) -> Any:
            if value is None or binary and isinstance(value, self._class):
                return value
            return self._to_text(value)

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        def process(value: Any) -> str:
            # nothing in the text of a value would need to be quoted
            return f"'{self._to_text(value)}'::{self.get_col_spec()}"

        return process

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], _Value | None] | None:
        def process(value: Any) -> _Value | None:
            # `register_bq` may have been called on the connection
            return self._class.from_text(value) if isinstance(value, str) else value

        return process

    def _to_text(self, value: Any) -> str:
        if not isinstance(value, self._class):
            raise TypeError(
                f"expected a {self._class.__name__}, got {type(value).__name__}; "
                f"see pybq.Quantizer, or use pybq.sqlalchemy.{self._function}"
            )
        return value.to_text()

    _function: str  # makes such values in SQL

    def get_col_spec(self, **options: Any) -> str:
        raise NotImplementedError


class BQVec(_ValueType[Code]):
    """Column of packed 2-bit codes: the SQL type `bqvec`; its values are `pybq.Code`.

    Parameters
    ----------
    dim : int, optional
        Number of dimensions, checked by the server. None: any, as in an unmodified `bqvec`.
    transform : int
        Number of the rotation that the codes were made with, 0 for the original axes: what a float
        vector in a comparison goes through before it is sent.
    declare : bool
        Whether the transform is part of the SQL type, `bqvec(dim, transform)`: then the server
        refuses codes of another one. Not for columns that `pybq.Table` is to encode anew.

    Notes
    -----
    The comparator has the methods `hamming_distance`, `cosine_distance`, `l2_distance` and
    `inner_product`; the smallest value of each is the nearest row, so that all of them go into
    ``order_by`` and are answered by one index ``USING bq``.

    A code carries its transform. If the number here is not that of the codes in the table, the
    server refuses the comparison; it never answers from codes that do not match. A table made by
    `pybq.Table` decides at its first ingest: ``table.status().transform`` has the number, to be
    written here, or to be applied to one statement by
    ``type_coerce(Item.code, BQVec(384, transform=...))``. A ready `pybq.Query` needs no number.

    Reflection finds the type, its dim and a declared transform once this module is imported.

    Examples
    --------
    >>> from sqlalchemy import Column, MetaData, Table, select
    >>> items = Table("items", MetaData(), Column("code", BQVec(384)))
    >>> print(select(items.c.code).order_by(items.c.code.cosine_distance([1.0] * 384)))
    SELECT items.code
    FROM items ORDER BY items.code <=> :param_1
    """

    cache_ok = True
    _class = Code
    _function = "bq_encode"

    def __init__(self, dim: int | None = None, transform: int = 0, declare: bool = False) -> None:
        super().__init__()
        name_type(dim, transform, declare)  # checks them
        self.dim = dim
        self.transform = transform
        self.declare = declare

    def get_col_spec(self, **options: Any) -> str:
        return name_type(self.dim, self.transform, self.declare).upper()

    class Comparator(UserDefinedType.Comparator[Code]):
        """Distances of a column of codes."""

        def hamming_distance(self, other: Code | _Vector) -> ColumnElement[float]:
            """Sum over dimensions of the difference in levels: `<~>`.

            Parameters
            ----------
            other : Code, array_like of float, shape (dim,), or SQL expression
                A vector is encoded first, with the column's transform.
            """
            return self._distance("<~>", other, self._bind_code)

        def cosine_distance(self, query: Query | _Vector) -> ColumnElement[float]:
            """Cosine distance to a query of full precision: `<=>`.

            Parameters
            ----------
            query : Query, array_like of float, shape (dim,), or SQL expression
                A vector becomes what `bq_query(vector, transform)` gives, with the column's
                transform; it is rotated here, not in SQL, where it might be done for each row.

            Raises
            ------
            TypeError, ValueError
                If it is a Code (their distance is `hamming_distance`), if the shape does not
                match, or a value is not finite.
            """
            return self._distance("<=>", query, self._bind_query)

        def l2_distance(self, query: Query | _Vector) -> ColumnElement[float]:
            """Euclidean distance to a query: `<->`. Parameters as of `cosine_distance`."""
            return self._distance("<->", query, self._bind_query)

        def inner_product(self, query: Query | _Vector) -> ColumnElement[float]:
            """Negative inner product with a query: `<#>`. Parameters as of `cosine_distance`.

            Negative, as the operator is, so that the smallest is the nearest: with
            ``order_by(Item.code.inner_product(query))`` the largest product comes first. The
            product itself is ``func.inner_product(Item.code, query)``.
            """
            return self._distance("<#>", query, self._bind_query)

        max_inner_product = inner_product  # pgvector-python's word for the same operator

        def _distance(
            self, operator: str, other: Any, bind: Callable[[Any], ColumnElement[Any]]
        ) -> ColumnElement[float]:
            operand = other if _is_expression(other) else bind(other)
            return self.expr.op(operator, return_type=Double())(operand)

        def _bind_code(self, value: Any) -> ColumnElement[Code]:
            kind = cast(BQVec, self.type)
            if isinstance(value, Query):
                raise TypeError("expected a Code or a vector, got Query; see cosine_distance")
            if not isinstance(value, Code):
                value = Code.from_numpy(_quantizer_for(kind, value).encode(value))
            return bindparam(None, value, type_=kind, unique=True)

        def _bind_query(self, value: Any) -> ColumnElement[Query]:
            if isinstance(value, Code):
                raise TypeError("expected a Query or a vector, got Code; see hamming_distance")
            if not isinstance(value, Query):
                value = _quantizer_for(cast(BQVec, self.type), value).query(value)
            return bindparam(None, value, type_=BQQuery(), unique=True)

    comparator_factory = Comparator


class BQQuery(_ValueType[Query]):
    """The SQL type `bqquery`: a float vector ready to be compared with codes.

    Its values are `pybq.Query`. Of use for parameters, ``bindparam("query", type_=BQQuery())``,
    rarely for columns.
    """

    cache_ok = True
    _class = Query
    _function = "bq_query"

    def get_col_spec(self, **options: Any) -> str:
        return "BQQUERY"


class _Statistics(UserDefinedType[str]):
    """The SQL type `bq_statistics`, for whoever reflects the extension's tables."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "BQ_STATISTICS"


def bq_encode(vector: _Vector, transform: int = 0) -> ColumnElement[Code]:
    """Encode on the server: `bq_encode(vector::real[], transform)`.

    Parameters
    ----------
    vector : SQL expression, or array_like of float, shape (dim,)
        A column of pgvector's types, of `real[]`, or values.
    transform : int
        Number of the rotation, 0 for the original axes.

    Returns
    -------
    ColumnElement
        Of type `BQVec` with this transform.

    Examples
    --------
    >>> from pgvector.sqlalchemy import HALFVEC
    >>> from sqlalchemy import Column, MetaData, Table, update
    >>> from sqlalchemy.dialects import postgresql
    >>> items = Table("items", MetaData(), Column("embedding", HALFVEC(3)), Column("code", BQVec()))
    >>> statement = update(items).values(code=bq_encode(items.c.embedding))
    >>> print(statement.compile(dialect=postgresql.dialect()))
    UPDATE items SET code=bq_encode(CAST(items.embedding AS REAL[]), 0)

    An index without a column of codes, and what uses it; the cast says the dimensions:

    >>> from sqlalchemy import Index, cast, select
    >>> code = cast(bq_encode(items.c.embedding, 1), BQVec(3, transform=1))
    >>> index = Index("ix_items_code", code, postgresql_using="bq")
    >>> statement = select(items.c.embedding).order_by(code.cosine_distance([1, 0, 2])).limit(10)
    """
    number = _write_transform(transform)
    return func.bq_encode(_as_reals(vector), number, type_=BQVec(transform=transform))


def bq_query(vector: _Vector, transform: int = 0) -> ColumnElement[Query]:
    """Make a query on the server: `bq_query(vector::real[], transform)`.

    For vectors that are in the database already, e.g. to find what resembles a row; a vector at
    hand goes to the comparator as it is. Parameters as of `bq_encode`.

    Examples
    --------
    >>> from sqlalchemy import Column, MetaData, Table, select
    >>> from sqlalchemy.dialects import postgresql
    >>> items = Table("items", MetaData(), Column("v", ARRAY(REAL)), Column("code", BQVec(3)))
    >>> other = items.alias("other")
    >>> distance = other.c.code.l2_distance(bq_query(items.c.v)).label("distance")
    >>> print(select(distance).compile(dialect=postgresql.dialect()))
    SELECT other.code <-> bq_query(CAST(items.v AS REAL[]), 0) AS distance
    FROM items AS other, items
    """
    return func.bq_query(_as_reals(vector), _write_transform(transform), type_=BQQuery())


@overload
def nearest(
    entity: type[_Entity],
    *,
    code: SQLColumnExpression[Any],
    query: Query | _Vector,
    vector: SQLColumnExpression[Any] | None = None,
    metric: Metric = "cosine",
    k: int = 10,
    rerank: float = 4,
    where: ColumnElement[bool] | None = None,
) -> "Select[_Entity, float]": ...


@overload
def nearest(
    entity: "Select[Unpack[_Ts]]",
    *,
    code: SQLColumnExpression[Any],
    query: Query | _Vector,
    vector: SQLColumnExpression[Any] | None = None,
    metric: Metric = "cosine",
    k: int = 10,
    rerank: float = 4,
    where: ColumnElement[bool] | None = None,
) -> "Select[Unpack[_Ts], float]": ...


@overload
def nearest(
    entity: FromClause,
    *,
    code: SQLColumnExpression[Any],
    query: Query | _Vector,
    vector: SQLColumnExpression[Any] | None = None,
    metric: Metric = "cosine",
    k: int = 10,
    rerank: float = 4,
    where: ColumnElement[bool] | None = None,
) -> "Select[Any]": ...


def nearest(
    entity: Any,
    *,
    code: Any,
    query: Any,
    vector: Any = None,
    metric: Metric = "cosine",
    k: int = 10,
    rerank: float = 4,
    where: ColumnElement[bool] | None = None,
) -> Any:
    """Select the nearest rows: candidates by code, then in exact order by the stored vector.

    Parameters
    ----------
    entity : mapped class, Table or Select
        What to find. A Select may join and filter: its WHERE chooses the rows that are searched.
    code : column of type BQVec
        The codes, e.g. ``Item.code``.
    query : array_like of float, shape (dim,), Query or SQL expression
        What to look for; a Query only if there is nothing to re-rank by. With a
        ``bindparam("query")`` the statement can be made once, which takes half a millisecond, and
        executed with many vectors (or, without `vector`, many a Query); the server then makes
        what is compared with codes.
    vector : column of one of pgvector's types, optional
        The full vectors, e.g. ``Item.embedding``. Left out, the order is that of the codes.
    metric : {"cosine", "l2", "inner_product"}
        Which rows are nearest.
    k : int
        Number of rows wanted.
    rerank : float
        Candidates that the codes find, as a multiple of k.
    where : SQL expression, optional
        Condition on the rows that are searched. Put it here, or into a Select given: added to
        the statement returned, it would only choose among the candidates.

    Returns
    -------
    Select
        What `entity` selects, and last `distance`, nearest first. ``session.scalars()`` of it
        gives the entities alone. Exact distance, if there is a vector; for "inner_product" it is
        negative, as the operator's.

    Raises
    ------
    TypeError
        If `query` is a Query but a vector is to be compared with it.
    ValueError
        If metric, k or rerank is out of range, or the query does not match the codes.

    Examples
    --------
    >>> from pgvector.sqlalchemy import HALFVEC
    >>> from sqlalchemy import Column, Integer, MetaData, Table
    >>> items = Table(
    ...     "items", MetaData(), Column("id", Integer), Column("embedding", HALFVEC(3)),
    ...     Column("code", BQVec(3)),
    ... )
    >>> statement = nearest(
    ...     select(items.c.id), code=items.c.code, vector=items.c.embedding, query=[1, 0, 2])
    >>> print(statement.compile(compile_kwargs={"render_postcompile": True}))
    SELECT candidates.id, candidates.embedding <=> :embedding_1 AS distance
    FROM (SELECT items.id AS id, items.embedding AS embedding
    FROM items ORDER BY items.code <=> :param_1
    LIMIT 40) AS candidates ORDER BY distance
    LIMIT 10

    Made once, executed with many vectors:

    >>> from sqlalchemy import bindparam
    >>> statement = nearest(
    ...     select(items.c.id), code=items.c.code, vector=items.c.embedding,
    ...     query=bindparam("query"))  # session.execute(statement, {"query": [1, 0, 2]})
    """
    check_metric(metric)
    if vector is not None and (isinstance(query, Query) or _has_type(query, BQQuery)):
        raise TypeError("expected a vector to re-rank by, got Query; leave out `vector`")
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    if not 1 <= rerank < math.inf:
        raise ValueError(f"expected a finite rerank of at least 1, got {rerank}")
    statement: Select[Any] = entity if isinstance(entity, Select) else select(entity)
    if where is not None:
        statement = statement.where(where)
    code_query = query
    if _is_expression(query):
        code_query, query = _take_expression(query, code, vector)
    method = "inner_product" if metric == "inner_product" else f"{metric}_distance"
    by_code = getattr(code, method)(code_query)
    if vector is None:
        distance = by_code.label("distance")
        return statement.add_columns(distance).order_by(None).order_by(distance).limit(_limit(k))

    statement = statement.order_by(None).order_by(by_code).limit(_limit(math.ceil(k * rerank)))
    wanted = statement.column_descriptions
    candidates = statement.subquery("candidates")
    vector = _as_column(vector)
    if candidates.corresponding_column(vector) is None:
        candidates = statement.add_columns(vector).subquery("candidates")
    found: list[Any] = [
        aliased(description["entity"], candidates, name=description["name"])
        if description["expr"] is description.get("entity")
        else candidates.corresponding_column(_as_column(description["expr"]))
        for description in wanted
    ]
    stored = candidates.corresponding_column(vector)
    assert stored is not None
    distance = stored.op(OPERATORS[metric], return_type=Double())(query).label("distance")
    return select(*found, distance).order_by(distance).limit(_limit(k))


def _take_expression(query: Any, code: Any, vector: Any) -> tuple[Any, Any]:
    """What codes and what vectors are compared with, of a query that is an expression.

    A parameter has one type for the server, wherever it stands: that of the vectors, cast. A
    subquery is evaluated once, a call of bq_query with a parameter for each row returned.
    """
    query = _as_column(query)
    unknown = isinstance(query.type, NullType)
    if vector is None:
        if isinstance(query, BindParameter) and unknown:
            query = type_coerce(query, BQQuery())
        if unknown or isinstance(query.type, BQQuery):
            return query, query
    elif isinstance(query, BindParameter):
        kind = _as_column(vector).type
        query = sql_cast(type_coerce(query, kind), kind)
    transform = cast(BQVec, _as_column(code).type).transform
    return select(bq_query(query, transform)).scalar_subquery(), query


def _limit(n: int) -> ColumnElement[int]:
    """Written out, though not in the cache: a generic plan would guess a parameter."""
    return bindparam(None, n, type_=Integer(), unique=True, literal_execute=True)


def _write_transform(transform: int) -> TextClause:
    """Written out: with a parameter, a generic plan knows no index on an expression of it.

    No literal_column: Index would take it for the column that is indexed.
    """
    return text(str(operator.index(transform)))


def _as_column(column: Any) -> Any:
    return column.__clause_element__() if hasattr(column, "__clause_element__") else column


def _is_expression(value: Any) -> bool:
    return isinstance(value, ColumnElement) or hasattr(value, "__clause_element__")


def _has_type(value: Any, kind: type[TypeEngine[Any]]) -> bool:
    return _is_expression(value) and isinstance(_as_column(value).type, kind)


def _as_reals(vector: Any) -> ColumnElement[Any]:
    if _is_expression(vector):
        return sql_cast(vector, ARRAY(REAL))
    values = np.asarray(vector, np.float32)
    if values.ndim != 1:
        raise ValueError(f"expected a vector of shape (dim,), got {values.shape}")
    return bindparam(None, values.tolist(), type_=ARRAY(REAL), unique=True)


def _quantizer_for(kind: BQVec, vector: Any) -> Quantizer:
    return share_quantizer(np.size(vector) if kind.dim is None else kind.dim, kind.transform)


@event.listens_for(Pool, "checkout")
def _register_dumpers(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    """Teach a psycopg connection to send codes and queries, unless `register_bq` has.

    At checkout, so that it does not matter whether the engine or this module came first. Asks
    the server nothing: the statement names the type of each parameter.
    """
    connection = record.driver_connection
    if not isinstance(connection, BaseConnection):
        return
    adapters: AdaptersMap = connection.adapters
    try:
        adapters.get_dumper(Query, PyFormat.AUTO)
    except ProgrammingError:
        for value in (Code, Query):
            for dumper in (_TextDumper, _BinaryDumper):
                adapters.register_dumper(value, type(dumper.__name__, (dumper,), {"value": value}))


def _reflect_bqvec(dim: int | None = None, transform: str | None = None) -> BQVec:
    return BQVec(dim) if transform is None else BQVec(dim, int(transform), declare=True)


_reflected: dict[str, Any] = {
    "bqvec": _reflect_bqvec,
    "bqquery": BQQuery,
    "bq_statistics": _Statistics,
    "bq_table": REGCLASS,  # of the extension's own table
}
ischema_names.update(_reflected)
