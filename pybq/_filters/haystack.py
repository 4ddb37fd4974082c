"""Filters of Haystack 2 -> a condition of SQL, and its parameters.

Metadata are in a column `meta` of jsonb, and are compared as jsonb: a number is no text, and what
is missing is null, as in Haystack. So no condition here is ever unknown, and NOT means not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

_JOINS = {"AND": " AND ", "OR": " OR ", "NOT": " AND "}
_SIGNS = {"==": "=", "!=": "<>", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
_OPERATORS = (*_SIGNS, "in", "not in")

# Fields of a document that are columns of text, and those that cannot be compared.
_TEXTS = ("id", "content")
_OTHERS = ("blob", "embedding", "score", "sparse_embedding")

# What may be a date, and whether it says its time zone; without one it is UTC.
_DATE = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([T ]([01]\d|2[0-3]):[0-5]\d|$)"
_ZONE = r":.*(Z|[+-]\d\d(:?\d\d)?)$"


def make_condition(filters: Mapping[str, Any] | None) -> tuple[sql.Composable, dict[str, Any]]:
    """Translate a tree of filters; without any, all documents meet the condition.

    Raises
    ------
    ValueError
        If it is none, or compares what has no order.
    """
    parameters: dict[str, Any] = {}
    return _join(filters, parameters) if filters else sql.SQL("true"), parameters


def _join(node: Any, parameters: dict[str, Any]) -> sql.Composable:
    if not isinstance(node, Mapping) or "operator" not in node:
        raise ValueError(f"expected a filter with an operator, got {node!r}")
    operator = node["operator"]
    if "field" in node:
        if "value" not in node:
            raise ValueError(f"expected a filter with a value, got {node!r}")
        return _compare(node["field"], operator, node["value"], parameters)
    if not node.get("conditions"):
        raise ValueError(f"expected a filter with a field, or with conditions, got {node!r}")
    if operator not in _JOINS:
        raise ValueError(f"expected operator of {', '.join(_JOINS)}, got {operator!r}")
    conditions = [_join(each, parameters) for each in node["conditions"]]
    text = sql.SQL("NOT ({})" if operator == "NOT" else "({})")
    return text.format(sql.SQL(_JOINS[operator]).join(conditions))


def _compare(field: str, operator: str, value: Any, parameters: dict[str, Any]) -> sql.Composable:
    def bind(value: Any) -> sql.Placeholder:
        name = f"p{len(parameters)}"
        parameters[name] = value
        return sql.Placeholder(name)

    if operator not in _OPERATORS:
        raise ValueError(f"expected operator of {', '.join(_OPERATORS)}, got {operator!r}")
    if field in _OTHERS:
        raise ValueError(f"expected a field of {', '.join(_TEXTS)} or meta, got {field!r}")
    path = field.removeprefix("meta.").split(".")
    column = sql.SQL("to_jsonb({})" if field in _TEXTS else "meta #> {}")
    stored = sql.SQL("coalesce({}, 'null')").format(
        column.format(sql.Identifier(field) if field in _TEXTS else bind(path))
    )
    if operator in ("in", "not in"):
        if not isinstance(value, list):
            raise ValueError(f"expected a list with {operator!r}, got {value!r}")
        text = "{} = ANY ({}::jsonb[])" if operator == "in" else "{} <> ALL ({}::jsonb[])"
        return sql.SQL(text).format(stored, bind([Jsonb(each) for each in value]))
    sign = sql.SQL(_SIGNS[operator])
    if operator in ("==", "!="):
        same = sql.SQL("{} {} {}").format(stored, sign, bind(Jsonb(value)))
        if operator == "!=" or field in _TEXTS or len(path) > 1 or not isinstance(value, str):
            return same
        # written as in an index that keeps the field
        name = sql.Literal(path[0].replace("%", "%%"))
        return sql.SQL("(meta ->> {} = {} AND {})").format(name, bind(value), same)
    if value is None:
        return sql.SQL("false")
    if isinstance(value, (int, float)):
        text = "(jsonb_typeof({0}) = 'number' AND {0} {1} {2})"
        return sql.SQL(text).format(stored, sign, bind(Jsonb(value)))
    return sql.SQL(
        "CASE WHEN ({0} ~ {1}) IS NOT TRUE THEN false WHEN {0} ~ {2} THEN {0}::timestamptz {3} {4}"
        " ELSE ({0} || ' UTC')::timestamptz {3} {4} END"
    ).format(sql.SQL("({} #>> '{{}}')").format(stored), _DATE, _ZONE, sign, bind(_read(value)))


def _read(value: Any) -> datetime:
    """A date, of a filter."""
    try:
        # Z is new in Python 3.11
        text = re.sub("Z$", "+00:00", value) if isinstance(value, str) else value.isoformat()
        date = datetime.fromisoformat(text)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"expected a number, or a date in ISO format, got {value!r}") from error
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
