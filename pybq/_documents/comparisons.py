"""Filters written as comparisons and logic, as Haystack 2 has them -> a tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, timezone
from typing import Any

from pybq._catalog.layout import Column
from pybq._documents.columns import Columns
from pybq._documents.filters import Compare, Every, Filter, Not, Operator, Some

LOGIC = ("AND", "OR", "NOT")
OPERATORS: dict[str, Operator] = {
    "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte", "in": "in",
    "not in": "nin",
}  # fmt: skip

# Fields of a document that cannot be compared.
OTHERS = ("blob", "embedding", "score", "sparse_embedding")


def to_filter(given: Mapping[str, Any] | None, columns: Columns) -> Filter | None:
    """A tree of a tree; without any, all documents are meant.

    Raises
    ------
    ValueError
        If it is none, or compares what has no order.
    """
    return _to_part(given, columns) if given else None


def _to_part(node: Any, columns: Columns) -> Filter:
    if not isinstance(node, Mapping) or "operator" not in node:
        raise ValueError(f"expected a filter with an operator, got {node!r}")
    operator = node["operator"]
    if "field" in node:
        if "value" not in node:
            raise ValueError(f"expected a filter with a value, got {node!r}")
        return _to_comparison(node["field"], operator, node["value"], columns)
    if not node.get("conditions"):
        raise ValueError(f"expected a filter with a field, or with conditions, got {node!r}")
    if operator not in LOGIC:
        raise ValueError(f"expected operator of {', '.join(LOGIC)}, got {operator!r}")
    parts = [_to_part(each, columns) for each in node["conditions"]]
    if operator == "OR":
        return Some(parts)
    return Every(parts) if operator == "AND" else Not(Every(parts))


def _to_comparison(name: str, sign: str, value: Any, columns: Columns) -> Filter:
    if sign not in OPERATORS:
        raise ValueError(f"expected operator of {', '.join(OPERATORS)}, got {sign!r}")
    if name in OTHERS:
        raise ValueError(f"expected a field of id, content or meta, got {name!r}")
    operator = OPERATORS[sign]
    if operator in ("in", "nin") and not isinstance(value, list):
        raise ValueError(f"expected a list with {sign!r}, got {value!r}")
    if operator in ("gt", "gte", "lt", "lte"):
        if value is None:
            return Some([])
        if not isinstance(value, (int, float)):
            value = _read_date(value)
    field: Column | tuple[str, ...] = tuple(name.removeprefix("meta.").split("."))
    if name == "id":
        field = columns.key
        many = value if isinstance(value, list) else [value]
        keys = [columns.to_key(each) if isinstance(each, str) else each for each in many]
        value = keys if isinstance(value, list) else keys[0]
    elif name == "content":
        field = columns.content
    return Compare(field, operator, value)


def _read_date(value: Any) -> datetime:
    text = value.isoformat() if isinstance(value, date) else value
    try:
        # Z is new in Python 3.11
        read = datetime.fromisoformat(re.sub("Z$", "+00:00", text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a number, or a date in ISO format, got {value!r}") from error
    return read if read.tzinfo else read.replace(tzinfo=timezone.utc)
