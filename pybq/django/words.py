"""`hybrid`: rows that are near a vector and rows that have words, fused by reciprocal rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.postgres.search import SearchQuery, SearchRank, SearchVector, SearchVectorField
from django.core.exceptions import EmptyResultSet, FieldDoesNotExist
from django.db import connections
from django.db.models import F, QuerySet
from django.db.models.query import RawQuerySet

from pybq._codes.ranks import check_words, fuse_lists, make_ranks

# What a row that is found has besides.
ADDED = ("score", "vector_rank", "text_rank")


def hybrid(
    queryset: QuerySet[Any],
    *,
    distance: Any,
    text: Any,
    words: str,
    language: str = "english",
    k: int = 10,
    weights: Sequence[float] | None = None,
    rrf: float | None = None,
    depth: int | None = None,
) -> RawQuerySet:
    """Rows of a queryset that two lists agree on: the nearest, and those that have the words.

    Both lists and their fusion are one statement. Each list is answered by its own index.

    Parameters
    ----------
    queryset : QuerySet
        Which rows: its conditions hold for both lists. Its order is not looked at; if joins repeat
        rows, it has to be ``distinct()``.
    distance : expression
        ``CosineDistance("embedding", query)``, or another distance of pgvector.django or of
        `pybq.django`.
    text : str or expression
        A field of text, whose words an index on ``SearchVector("body", config="english")``
        finds; or a `SearchVectorField`, or an expression of such a type.
    words : str
        As people type them: `websearch_to_tsquery`.
    language : str
        Configuration of full text search: that of the index.
    k : int
        Number of rows wanted.
    weights : (float, float), optional
        What the list by vectors and the list by words count; (1, 1) if left out.
    rrf : float, optional
        A row at place i of a list scores its weight / (rrf + i); 60 if left out.
    depth : int, optional
        Rows of each list; the larger of 50 and 4 k if left out.

    Returns
    -------
    RawQuerySet
        Objects of the model, the highest `score` first, with their places in both lists,
        `vector_rank` and `text_rank`: None if a row is not in one. It is evaluated when it is
        iterated over, and can be given `prefetch_related`; it cannot be filtered further.

    Raises
    ------
    ValueError
        If k, weights, rrf or depth is out of range, there are no words, the queryset is sliced,
        or the model has a field that is called as what is added, or a key of several fields.
    """
    ranks = make_ranks(k, weights, rrf, depth)
    check_words(words)
    if queryset.query.is_sliced or queryset.query.combinator:
        raise ValueError("expected a queryset that is neither sliced nor combined: k limits it")
    meta = queryset.model._meta.concrete_model._meta
    fields = meta.local_concrete_fields
    taken = {name for field in meta.concrete_fields for name in (field.name, field.column)}
    for name in ADDED:
        if name in taken:
            raise ValueError(f"expected a model without a field {name!r}, which is added to it")
    if len(getattr(meta, "pk_fields", [meta.pk])) != 1:  # which raw querysets cannot have
        raise ValueError("expected a model with a primary key of one field")
    key = meta.pk.attname
    document = _to_document(queryset, text, language)
    asked = SearchQuery(words, config=language, search_type="websearch")
    rows = queryset.order_by().annotate(bq_distance=distance)
    near = rows.order_by("bq_distance").values_list(key, "bq_distance")
    said = rows.alias(bq_words=document).filter(bq_words=asked)
    said = said.annotate(bq_rank=SearchRank(document, asked))
    said = said.order_by("-bq_rank", "bq_distance", key)
    said = said.values_list(key, "bq_distance", "bq_rank")

    by_vector, parameters = _compile(near[: ranks.depth], ["float8 '0'"])
    by_text, more = _compile(said[: ranks.depth], ["float8 '0'", "float8 '0'"])
    quote = connections[queryset.db].ops.quote_name
    table = quote(meta.db_table)
    column = f"{table}.{quote(meta.pk.column)}"
    wanted = [f"{table}.{quote(field.column)}" for field in fields]
    statement = (
        f"SELECT {', '.join(wanted)}, {', '.join(f'bq_fused.{name}' for name in ADDED)}"
        f" FROM ({fuse_lists(by_vector, by_text, 1, 0, ranks, k)})"
        f" AS bq_fused(bq_key, bq_distance, {', '.join(ADDED)})"
        f" JOIN {table} ON {column} = bq_fused.bq_key"
        f" ORDER BY bq_fused.score DESC, bq_fused.bq_distance, {column}"
    )
    return queryset.raw(statement, [*parameters, *more])


def _compile(rows: QuerySet[Any], others: Sequence[str]) -> tuple[str, Sequence[Any]]:
    """The statement of a queryset of keys and `others`, and its parameters."""
    try:
        return rows.query.get_compiler(using=rows.db).as_sql()
    except EmptyResultSet:  # as of `none()`, for which Django has no statement
        meta = rows.model._meta
        quote = connections[rows.db].ops.quote_name
        names = ", ".join([quote(meta.pk.column), *others])
        return f"SELECT {names} FROM {quote(meta.db_table)} WHERE false", ()


def _to_document(queryset: QuerySet[Any], text: Any, language: str) -> Any:
    """What has the words, of type tsvector."""
    if not isinstance(text, str):
        return text
    try:
        if isinstance(queryset.model._meta.get_field(text), SearchVectorField):
            return F(text)
    except FieldDoesNotExist:  # of another model, or an annotation
        pass
    return SearchVector(text, config=language)
