"""Migration operations for the extensions, and the index."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.indexes import PostgresIndex
from django.contrib.postgres.operations import CreateExtension

from pybq.django.fields import PUBLIC


class BQExtension(CreateExtension):
    """Migration operation: `CREATE EXTENSION bq`, for columns of codes."""

    __module__ = PUBLIC

    def __init__(self, hints: dict[str, Any] | None = None) -> None:
        self.name = "bq"
        self.hints = hints or {}


class BQPgvectorExtension(BQExtension):
    """Migration operation: `CREATE EXTENSION bq_pgvector`, for indexes on pgvector's columns.

    Makes `vector` and `bq` first, where they are missing; undone, it drops bq_pgvector alone.
    """

    __module__ = PUBLIC

    def __init__(self, hints: dict[str, Any] | None = None) -> None:
        super().__init__(hints)
        self.name = "bq_pgvector"

    def database_forwards(self, *arguments: Any) -> None:
        for name in ("vector", "bq"):
            needed = BQExtension(self.hints)
            needed.name = name
            needed.database_forwards(*arguments)
        super().database_forwards(*arguments)


class BQIndex(PostgresIndex):
    """An index `USING bq`.

    Parameters
    ----------
    *expressions, fields, name, condition, ...
        As of any index of Django. The first field, or expression, is what is searched, codes or
        vectors; those after it are kept to filter by.
    opclasses : sequence of str
        Of vectors it says the distance: "vector_cosine_ops", "halfvec_l2_ops", ... Codes and
        columns to filter by need none, so it may be shorter than `fields`.
    lists, probes, recall, transform : optional
        Options of CREATE INDEX: extension/README.md. To change one makes the index anew, if need
        be beside writers by `AddIndexConcurrently`.
    """

    __module__ = PUBLIC

    suffix = "bq"

    def __init__(
        self,
        *expressions: Any,
        fields: Any = (),
        opclasses: Any = (),
        lists: int | None = None,
        probes: int | None = None,
        recall: float | None = None,
        transform: int | None = None,
        **options: Any,
    ) -> None:
        given = {"lists": lists, "probes": probes, "recall": recall, "transform": transform}
        self.options = {name: value for name, value in given.items() if value is not None}
        if opclasses:
            # Django wants as many as fields; an empty one is the default of the type
            opclasses = [*opclasses, *[""] * (len(fields) - len(opclasses))]
        super().__init__(*expressions, fields=fields, opclasses=opclasses, **options)

    def deconstruct(self) -> Any:
        path, expressions, kwargs = super().deconstruct()
        return path, expressions, {**kwargs, **self.options}

    def get_with_params(self) -> list[str]:
        return [f"{name} = {value}" for name, value in self.options.items()]
