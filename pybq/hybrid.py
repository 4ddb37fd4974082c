"""SQLAlchemy 2: rows that are near a vector and rows that have words, fused by reciprocal rank.

`pybq.sqlalchemy` has column types and `nearest`; docs/hybrid.md the same as SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, overload

from numpy.typing import ArrayLike

from pybq.errors import needed_by

with needed_by("pybq.hybrid"):
    from sqlalchemy import (
        ColumnElement,
        Double,
        Label,
        Select,
        SQLColumnExpression,
        String,
        and_,
        bindparam,
        func,
        inspect,
        literal,
        select,
        type_coerce,
    )
    from sqlalchemy import cast as sql_cast
    from sqlalchemy.dialects.postgresql import REGCONFIG, TSVECTOR
    from sqlalchemy.sql import FromClause

from pybq._codes.metric import OPERATORS, Metric, check_metric
from pybq._codes.ranks import check_words, make_ranks
from pybq.sqlalchemy import _as_column, _limit

__all__ = ["hybrid"]

_Entity = TypeVar("_Entity")
_Vector: TypeAlias = ArrayLike | SQLColumnExpression[Any]


@overload
def hybrid(
    entity: type[_Entity],
    *,
    vector: SQLColumnExpression[Any],
    query: _Vector,
    text: SQLColumnExpression[Any],
    words: str | ColumnElement[str],
    language: str = "english",
    metric: Metric = "cosine",
    k: int = 10,
    weights: Sequence[float] | None = None,
    rrf: float | None = None,
    depth: int | None = None,
    where: ColumnElement[bool] | None = None,
) -> Select[_Entity, float, int | None, int | None]: ...


@overload
def hybrid(
    entity: FromClause,
    *,
    vector: SQLColumnExpression[Any],
    query: _Vector,
    text: SQLColumnExpression[Any],
    words: str | ColumnElement[str],
    language: str = "english",
    metric: Metric = "cosine",
    k: int = 10,
    weights: Sequence[float] | None = None,
    rrf: float | None = None,
    depth: int | None = None,
    where: ColumnElement[bool] | None = None,
) -> Select[Any]: ...


def hybrid(
    entity: Any,
    *,
    vector: Any,
    query: Any,
    text: Any,
    words: Any,
    language: str = "english",
    metric: Metric = "cosine",
    k: int = 10,
    weights: Sequence[float] | None = None,
    rrf: float | None = None,
    depth: int | None = None,
    where: ColumnElement[bool] | None = None,
) -> Any:
    """Select the rows that two lists agree on: the nearest, and those that have the words.

    Parameters
    ----------
    entity : mapped class or Table
        What to find; it needs a primary key.
    vector : column of one of pgvector's types
    query : array_like of float, shape (dim,), or SQL expression
        What to look for; with ``bindparam("query")`` the statement can be made once.
    text : column or expression of text, or of type TSVECTOR
        What has the words; an index on ``to_tsvector('english', body)``, or on the column of
        TSVECTOR, finds them.
    words : str or ``bindparam("words")``
        As people type them: `websearch_to_tsquery`.
    language : str
        Configuration of full text search: that of the index.
    metric : {"cosine", "l2", "inner_product"}
        Which rows are nearest.
    k : int
        Number of rows wanted.
    weights : (float, float), optional
        What the list by vectors and the list by words count; (1, 1) if left out.
    rrf : float, optional
        A row at place i of a list scores its weight / (rrf + i); 60 if left out.
    depth : int, optional
        Rows of each list; the larger of 50 and 4 k if left out.
    where : SQL expression, optional
        Condition on the rows of both lists.

    Returns
    -------
    Select
        The entity, `score`, and the places in both lists, `vector_rank` and `text_rank`: None if
        it is not in one. The highest score comes first; ``session.scalars()`` gives the entities.

    Raises
    ------
    ValueError
        If metric, k, weights, rrf or depth is out of range, or words are empty.

    Examples
    --------
    >>> import pybq
    >>> from pgvector.sqlalchemy import HALFVEC
    >>> from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine
    >>> notes = Table(
    ...     "notes", MetaData(), Column("id", Integer, primary_key=True), Column("body", Text),
    ...     Column("embedding", HALFVEC(3)))
    >>> statement = hybrid(
    ...     notes, vector=notes.c.embedding, query=bindparam("query"),
    ...     text=notes.c.body, words=bindparam("words"), k=2)
    >>> with pybq.serve() as server:
    ...     engine = create_engine(server.dsn.replace("postgresql:", "postgresql+psycopg:"))
    ...     with engine.begin() as conn:
    ...         notes.create(conn)
    ...         _ = conn.execute(notes.insert(), [
    ...             {"id": 1, "body": "green apples", "embedding": [1, 0, 0]},
    ...             {"id": 2, "body": "red apples", "embedding": [0, 1, 0]},
    ...             {"id": 3, "body": "green pears", "embedding": [0, 0, 1]}])
    ...         found = conn.execute(statement, {"query": [0, 1, 0.1], "words": "apple"}).all()
    ...     engine.dispose()
    >>> [(row.id, row.vector_rank, row.text_rank) for row in found]
    [(2, 1, 1), (1, 3, 2)]
    """
    check_metric(metric)
    ranks = make_ranks(k, weights, rrf, depth)
    if isinstance(words, str):
        check_words(words)
    keys = _find_keys(entity)
    names = [f"key_{i}" for i in range(len(keys))]
    # Written out: with a parameter a generic plan knows no index on an expression of it.
    configuration = sql_cast(
        bindparam(None, language, String(), unique=True, literal_execute=True), REGCONFIG
    )
    text, vector = _as_column(text), _as_column(vector)
    if not isinstance(text.type, TSVECTOR):
        text = func.to_tsvector(configuration, text, type_=TSVECTOR())
    asked = func.websearch_to_tsquery(configuration, words)
    query = type_coerce(query, vector.type)
    distance = vector.op(OPERATORS[metric], return_type=Double())(query).label("distance")
    rank: Label[float] = func.ts_rank(text, asked, type_=Double()).label("rank")
    rows = select(*(key.label(name) for key, name in zip(keys, names, strict=True)), distance)
    if where is not None:
        rows = rows.where(where)
    near_rows = rows.order_by(distance).limit(_limit(ranks.depth)).subquery("near_rows")
    with_words = rows.add_columns(rank).where(text.op("@@")(asked))
    with_words = with_words.order_by(rank.desc(), distance, *keys).limit(_limit(ranks.depth))
    said_rows = with_words.subquery("said_rows")
    # An index whose order is relaxed is taken at its word, which the sum is not.
    near_order = [near_rows.c.distance + literal(0, literal_execute=True)]
    near = _number(near_rows, [*near_order, *(near_rows.c[n] for n in names)])
    near = near.where(near_rows.c.distance != sql_cast("NaN", Double())).subquery("near")
    said_order = [said_rows.c.rank.desc(), said_rows.c.distance]
    said = _number(said_rows, [*said_order, *(said_rows.c[n] for n in names)]).subquery("said")
    both = near.outerjoin(said, and_(*(near.c[n] == said.c[n] for n in names)), full=True)
    of_near, of_said = ranks.weights
    score = _score(of_near, ranks.rrf, near.c.place) + _score(of_said, ranks.rrf, said.c.place)
    fused = (
        select(
            *(func.coalesce(near.c[name], said.c[name]).label(name) for name in names),
            func.coalesce(near.c.distance, said.c.distance).label("distance"),
            score.label("score"),
            near.c.place.label("vector_rank"),
            said.c.place.label("text_rank"),
        )
        .select_from(both)
        .subquery("fused")
    )
    same = and_(*(key == fused.c[name] for key, name in zip(keys, names, strict=True)))
    order = [fused.c.score.desc(), fused.c.distance, *(fused.c[name] for name in names)]
    found: Select[Any] = select(entity, fused.c.score, fused.c.vector_rank, fused.c.text_rank)
    return found.join(fused, same).order_by(*order).limit(_limit(k))


def _score(weight: float, rrf: float, place: Any) -> ColumnElement[float]:
    """What a list adds to the score of a row, nothing where it has none."""
    return func.coalesce(literal(weight, Double()) / (rrf + place), 0.0)


def _number(rows: Any, order: Sequence[Any]) -> Any:
    place: Label[int] = func.row_number().over(order_by=order).label("place")
    return select(rows, place)


def _find_keys(entity: Any) -> list[Any]:
    """Columns of the primary key, as the entity has them."""
    inspected = inspect(entity)
    mapper = getattr(inspected, "mapper", None)
    if mapper is None:
        keys = list(inspected.primary_key)
        if not keys:
            raise ValueError(f"expected a table with a primary key, got {entity}")
        return keys
    return [
        _as_column(getattr(entity, mapper.get_property_by_column(column).key))
        for column in mapper.primary_key
    ]
