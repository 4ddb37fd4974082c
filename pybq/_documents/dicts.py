"""Filters written as dicts, as MongoDB has them and LangChain after it -> a tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pybq._documents.filters import Compare, Every, Filter, Not, Operator, Some

OPERATORS: dict[str, Operator] = {
    "$eq": "eq", "$ne": "ne", "$lt": "lt", "$lte": "lte", "$gt": "gt", "$gte": "gte",
    "$in": "in", "$nin": "nin", "$like": "like", "$ilike": "ilike", "$exists": "exists",
    "$contains": "contains",
}  # fmt: skip


def to_filter(given: Any) -> Filter | None:
    """A tree of a dict; fields that have a value and no operator are compared as equal."""
    if given is None or isinstance(given, (Compare, Every, Some, Not)):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"expected filter as a dict, got {type(given).__name__}")
    return Every([_to_part(name, value) for name, value in given.items()])


def _to_part(name: Any, value: Any) -> Filter:
    if name in ("$and", "$or", "$not"):
        many = value if isinstance(value, (list, tuple)) else [value]
        parts = [cast(Filter, to_filter(each)) for each in many]
        if None in parts or (name != "$not" and not isinstance(value, (list, tuple))):
            raise ValueError(f"expected a list of filters after {name!r}, got {value!r}")
        if name == "$not":
            return Not(Every(parts))
        return Every(parts) if name == "$and" else Some(parts)
    if not isinstance(name, str) or name.startswith("$"):
        raise ValueError(f"expected a field, $and, $or or $not in a filter, got {name!r}")
    if not isinstance(value, Mapping):
        return Compare(name, "eq", value)
    if not value:  # which would be true of all documents
        raise ValueError(f"expected a value or operators for field {name!r}, got {value!r}")
    tests: list[Filter] = []
    for operator, operand in value.items():
        if operator == "$between":
            if not isinstance(operand, (list, tuple)) or len(operand) != 2:
                raise ValueError(f"expected two values after '$between', got {operand!r}")
            tests += [Compare(name, "gte", operand[0]), Compare(name, "lte", operand[1])]
        elif operator in OPERATORS:
            tests.append(Compare(name, OPERATORS[operator], operand))
        else:
            known = ", ".join((*OPERATORS, "$between"))
            raise ValueError(f"expected an operator of {known}, got {operator!r}")
    return Every(tests)
