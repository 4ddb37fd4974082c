"""Distances of codes and of vectors, to order by."""

from __future__ import annotations

from typing import Any

import numpy as np
from django.db.models import FloatField, Func, Value

from pybq._codes.arrays import as_numbers
from pybq._codes.vector import Code, Query
from pybq.django.fields import PUBLIC, BQVecField


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

    __module__ = PUBLIC

    arg_joiner = " <=> "


class L2Distance(_Distance):
    """Euclidean distance: `<->`. Parameters as of `CosineDistance`."""

    __module__ = PUBLIC

    arg_joiner = " <-> "


class MaxInnerProduct(_Distance):
    """Negative inner product, the smallest of the nearest: `<#>`. Parameters as before."""

    __module__ = PUBLIC

    arg_joiner = " <#> "


class HammingDistance(_Distance):
    """Between codes, the sum of the differences in levels; between pgvector's bits: `<~>`.

    The second argument is a Code, a vector, which is encoded as the column is, or text of bits.
    """

    __module__ = PUBLIC

    arg_joiner = " <~> "

    def _bind(self, query: Any, field: BQVecField) -> _Operand:
        if isinstance(query, Query):
            raise TypeError("expected a Code or a vector, got Query; see CosineDistance")
        return _Operand(field.to_python(query), "bqvec")
