"""The column of codes, and what makes codes and queries of vectors in the database."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from django.db.models import Field, Func

from pybq._codes.quantizer import Quantizer, name_type, share_quantizer
from pybq._codes.vector import Code

# Migrations write where a class is from: files may change, the public name does not.
PUBLIC = "pybq.django"


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

    __module__ = PUBLIC

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

    __module__ = PUBLIC

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

    __module__ = PUBLIC

    # evaluated once: the function alone would be called for each row that is returned
    template = "(SELECT bq_query((%(expressions)s)::real[], %(transform)s))"

    def __init__(self, vector: Any, transform: int = 0) -> None:
        super().__init__(vector, transform=operator.index(transform), output_field=Field())
