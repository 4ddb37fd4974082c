"""Django 4.2 and later: index, fields and distances, beside those of pgvector.django or alone.

docs/django.md shows all of this at work. The distances are for columns of codes and of vectors.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pybq._codes.arrays import as_numbers
from pybq._codes.quantizer import Quantizer, name_type, share_quantizer
from pybq._codes.vector import Code, Query
from pybq.errors import needed_by

with needed_by("pybq.django"):
    from django.contrib.postgres.indexes import PostgresIndex
    from django.contrib.postgres.operations import CreateExtension
    from django.db import DEFAULT_DB_ALIAS, connections, transaction
    from django.db.models import Field, FloatField, Func, Value

__all__ = [
    "BQEncode",
    "BQExtension",
    "BQIndex",
    "BQPgvectorExtension",
    "BQQuery",
    "BQVecField",
    "CosineDistance",
    "HammingDistance",
    "L2Distance",
    "MaxInnerProduct",
    "bq_settings",
]


class BQExtension(CreateExtension):
    """Migration operation: `CREATE EXTENSION bq`, for columns of codes."""

    def __init__(self, hints: dict[str, Any] | None = None) -> None:
        self.name = "bq"
        self.hints = hints or {}


class BQPgvectorExtension(BQExtension):
    """Migration operation: `CREATE EXTENSION bq_pgvector`, for indexes on pgvector's columns.

    Makes `vector` and `bq` first, where they are missing; undone, it drops bq_pgvector alone.
    """

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


class BQVecField(Field):
    """Column of packed 2-bit codes: the SQL type `bqvec`; its values are `pybq.Code`.

    A vector, an array_like of float, is encoded on its way to the database. Forms leave it out.

    Parameters
    ----------
    dim : int, optional
        Number of dimensions, checked by the server. None: any, but such a column has no index.
    transform : int
        Number of the rotation that codes are made with, 0 for the original axes: what vectors go
        through that are assigned to the column, or compared with it.
    declare : bool
        Whether the server is to refuse codes of another transform: `bqvec(dim, transform)`.
    """

    description = "Packed 2-bit code"
    empty_strings_allowed = False

    def __init__(
        self,
        *arguments: Any,
        dim: int | None = None,
        transform: int = 0,
        declare: bool = False,
        **options: Any,
    ) -> None:
        name_type(dim, transform, declare)  # checks them
        self.dim = dim
        self.transform = transform
        self.declare = declare
        super().__init__(*arguments, **options)

    def deconstruct(self) -> Any:
        name, path, arguments, options = super().deconstruct()
        given = {"dim": self.dim, "transform": self.transform, "declare": self.declare}
        return name, path, arguments, {**options, **{k: v for k, v in given.items() if v}}

    def db_type(self, connection: Any) -> str:
        return name_type(self.dim, self.transform, self.declare)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Code | None:
        # `register_bq` may have been called on the connection
        return Code.from_text(value) if isinstance(value, str) else value

    def to_python(self, value: Any) -> Code | None:
        if value is None or isinstance(value, Code):
            return value
        if isinstance(value, str):
            return Code.from_text(value)
        return Code.from_numpy(self._find_quantizer(np.size(value)).encode(value))

    def get_prep_value(self, value: Any) -> Any:
        code = self.to_python(super().get_prep_value(value))
        return None if code is None else code.to_text()

    def value_to_string(self, obj: Any) -> str:
        return self.get_prep_value(self.value_from_object(obj)) or ""

    def formfield(self, **options: Any) -> None:
        return None

    def _find_quantizer(self, dim: int) -> Quantizer:
        return share_quantizer(dim if self.dim is None else self.dim, self.transform)


class BQEncode(Func):
    """`bq_encode(vector::real[], transform)`: a code, made by the server of a column of vectors."""

    template = "bq_encode((%(expressions)s)::real[], %(transform)s)"

    def __init__(self, vector: Any, transform: int = 0) -> None:
        # written out: with a parameter, a plan knows no index on the expression
        number = operator.index(transform)
        super().__init__(vector, transform=number, output_field=BQVecField(transform=number))


class BQQuery(Func):
    """`bq_query(vector::real[], transform)`: a query for codes, of a vector in the database.

    ``CosineDistance("code", BQQuery(Document.objects.filter(pk=1).values("embedding"), 1))``
    orders by likeness to a row. A vector at hand goes to the distances as it is.
    """

    # evaluated once: the function alone would be called for each row that is returned
    template = "(SELECT bq_query((%(expressions)s)::real[], %(transform)s))"

    def __init__(self, vector: Any, transform: int = 0) -> None:
        super().__init__(vector, transform=operator.index(transform), output_field=Field())


class _Operand(Value):
    """What a column is compared with, in the words of its type; None: of the column's."""

    def __init__(self, given: Any, type_name: str | None = None) -> None:
        text: str | None
        if isinstance(given, (Code, Query)):
            text = given.to_text()
        elif isinstance(given, str) or given is None:
            text = given
        else:
            # pgvector's own values are no arrays
            given = given.to_numpy() if hasattr(given, "to_numpy") else given
            given = as_numbers(given, "a query").astype(np.float32)
            if given.ndim != 1:
                raise ValueError(f"expected a query of shape (dim,), got {given.shape}")
            text = str(given.tolist())
        # by which Django compares and hashes, as it could not arrays
        self._constructor_args: Any = ((text, type_name), {})
        self.given = given
        self.type_name = type_name
        super().__init__(text)

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        text, parameters = super().as_sql(compiler, connection)
        return (f"{text}::{self.type_name}" if self.type_name else text), parameters


class _Distance(Func):
    function = ""
    output_field = FloatField()

    def __init__(self, expression: Any, query: Any, **options: Any) -> None:
        query = query if hasattr(query, "resolve_expression") else _Operand(query)
        self._constructor_args: Any = ((expression, query), options)
        super().__init__(expression, query, **options)

    def resolve_expression(self, *arguments: Any, **options: Any) -> Any:
        resolved = super().resolve_expression(*arguments, **options)
        column, query = resolved.get_source_expressions()
        if isinstance(query, _Operand) and isinstance(column.output_field, BQVecField):
            bound = self._bind(query.given, column.output_field)
            resolved.set_source_expressions([column, bound])
        return resolved

    def _bind(self, query: Any, field: BQVecField) -> _Operand:
        if isinstance(query, Code):
            raise TypeError("expected a Query or a vector, got Code; see HammingDistance")
        if not isinstance(query, Query):
            query = field._find_quantizer(np.size(query)).query(query)
        return _Operand(query, "bqquery")


class CosineDistance(_Distance):
    """Cosine distance: `<=>`.

    Parameters
    ----------
    expression : str or expression
        A column of codes, or one of pgvector's types.
    query : array_like of float, shape (dim,), Query, or expression
        For codes, a vector goes through the transform of the column.
    """

    arg_joiner = " <=> "


class L2Distance(_Distance):
    """Euclidean distance: `<->`. Parameters as of `CosineDistance`."""

    arg_joiner = " <-> "


class MaxInnerProduct(_Distance):
    """Negative inner product, the smallest of the nearest: `<#>`. Parameters as before."""

    arg_joiner = " <#> "


class HammingDistance(_Distance):
    """Between codes, the sum of the differences in levels; between pgvector's bits: `<~>`.

    The second argument is a Code, a vector, which is encoded as the column is, or text of bits.
    """

    arg_joiner = " <~> "

    def _bind(self, query: Any, field: BQVecField) -> _Operand:
        if isinstance(query, Query):
            raise TypeError("expected a Code or a vector, got Query; see CosineDistance")
        return _Operand(field.to_python(query), "bqvec")


_SETTINGS = ("recall", "probes", "iterative_scan", "max_scan_tuples")


@contextmanager
def bq_settings(*, using: str = DEFAULT_DB_ALIAS, **values: float | str | None) -> Iterator[None]:
    """Run a block, in a transaction, with settings of bq: ``with bq_settings(recall=0.99):``

    Querysets are lazy: those that are evaluated within are meant. The settings are the
    transaction's, so no other session of a pool gets them, and they end with the block.

    Parameters
    ----------
    using : str
        Alias of the database.
    **values
        `recall`, `probes`, `iterative_scan`, `max_scan_tuples`, as in ``SET bq.recall = 0.99``.
    """
    for name in values:
        if name not in _SETTINGS:
            raise TypeError(f"expected settings of {', '.join(_SETTINGS)}, got {name!r}")
    with transaction.atomic(using=using):
        before = _set(using, values)
        yield
        # an error undoes them by itself
        if not connections[using].needs_rollback:
            _set(using, before)


def _set(using: str, values: dict[str, Any]) -> dict[str, Any]:
    """Set them for the transaction, None: to what they are by default; returns what they were."""
    before = {}
    with connections[using].cursor() as cursor:
        for name, value in values.items():
            # unknown until the session has used bq, and never the empty text it then shows
            cursor.execute("SELECT nullif(current_setting(%s, true), '')", [f"bq.{name}"])
            before[name] = cursor.fetchone()[0]
            if value is None:
                cursor.execute(f"SET LOCAL bq.{name} TO DEFAULT")
            else:
                cursor.execute("SELECT set_config(%s, %s, true)", [f"bq.{name}", str(value)])
    return before
