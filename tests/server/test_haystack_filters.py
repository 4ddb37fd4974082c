"""Filters of Haystack in SQL mean what they do in Python: every operator on every kind of value."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from shared import Conn

from pybq._filters.haystack import make_condition

VALUES = [
    0, 1, -2.5, 10**20, "1", "", "x", True, False, None, [], [1], ["x"], {"a": 1},
    "2024-05-01", "2024-05-01T10:00:00", "2024-05-01T12:00:00+02:00", "2024-05-01 09:59:59.500Z",
]  # fmt: skip

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def as_date(value: Any) -> datetime | None:
    try:
        date = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def same(a: Any, b: Any) -> bool:
    """As JSON: True is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def is_met(node: dict[str, Any], meta: dict[str, Any]) -> bool:
    sign = node["operator"]
    if "conditions" in node:
        met = [is_met(each, meta) for each in node["conditions"]]
        return {"AND": all(met), "OR": any(met), "NOT": not all(met)}[sign]
    found: Any = meta
    for name in node["field"].removeprefix("meta.").split("."):
        found = found.get(name) if isinstance(found, dict) else None
    value = node["value"]
    if sign in ("in", "not in"):
        return any(same(found, each) for each in value) == (sign == "in")
    if sign in ("==", "!="):
        return same(found, value) == (sign == "==")
    numbers = [each for each in (found, value) if isinstance(each, (int, float))]
    if len(numbers) == 2 and not isinstance(found, bool):
        return ORDER[sign](found, value)
    a, b = as_date(found), as_date(value)
    return a is not None and b is not None and ORDER[sign](a, b)


def make_filters() -> list[dict[str, Any]]:
    def compare(sign: str, value: Any, field: str = "meta.v") -> dict[str, Any]:
        return {"field": field, "operator": sign, "value": value}

    filters = [compare(sign, value) for sign in ("==", "!=") for value in VALUES]
    ordered = [v for v in VALUES if v is None or as_date(v) or isinstance(v, (int, float))]
    ordered = [v for v in ordered if not isinstance(v, bool)]
    filters += [compare(sign, value) for sign in ORDER for value in ordered]
    lists = ([], [None], [1, "x"], [True, []], VALUES)
    filters += [compare(sign, value) for sign in ("in", "not in") for value in lists]
    filters += [compare("==", 1, "meta.deep.v"), compare("==", "x", "v"), compare("!=", 1, "no")]
    filters += [{"operator": "NOT", "conditions": [each]} for each in filters]
    pairs = itertools.product(filters[::7], filters[::11])
    joined = zip(itertools.cycle(("AND", "OR", "NOT")), pairs)
    return filters + [{"operator": sign, "conditions": [*pair]} for sign, pair in joined]


def test_filters_mean_what_python_says(conn: Conn) -> None:
    metas: list[dict[str, Any]] = [{}, *({"v": v} for v in VALUES), {"deep": {"v": 1}}]
    conn.execute("CREATE TABLE documents (id text, content text, meta jsonb NOT NULL)")
    with conn.cursor() as cursor:
        rows = [(i, Jsonb(meta)) for i, meta in enumerate(metas)]
        cursor.executemany("INSERT INTO documents (id, meta) VALUES (%s, %s)", rows)
    for filters in make_filters():
        condition, parameters = make_condition(filters)
        query = sql.SQL("SELECT id::int, {} FROM documents ORDER BY 1").format(condition)
        found = conn.execute(query, parameters).fetchall()
        expected = [(i, is_met(filters, meta)) for i, meta in enumerate(metas)]
        assert found == expected, filters


def test_without_filters_all_are_met() -> None:
    for none in (None, {}):
        condition, parameters = make_condition(none)
        assert (condition.as_string(), parameters) == ("true", {})


@pytest.mark.parametrize(
    "filters",
    [
        {"field": "meta.v"},
        {"field": "meta.v", "operator": "=="},
        {"field": "meta.v", "operator": "=", "value": 1},
        {"field": "meta.v", "operator": ">", "value": "x"},
        {"field": "meta.v", "operator": ">", "value": [1]},
        {"field": "meta.v", "operator": "in", "value": "x"},
        {"field": "embedding", "operator": "==", "value": [1]},
        {"operator": "AND"},
        {"operator": "XOR", "conditions": [{"field": "v", "operator": "==", "value": 1}]},
    ],
)
def test_what_is_no_filter_is_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_condition(filters)
