"""Filters of Haystack in SQL mean what they do in Python: every operator on every kind of value."""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from psycopg import sql
from shared import Conn

import pybq
from pybq._documents.columns import Columns
from pybq._documents.comparisons import to_filter
from pybq._documents.documents import Documents, write

pytestmark = [pytest.mark.usefixtures("bq_pgvector"), pytest.mark.once]

VALUES = [
    0, 1, -2.5, 10**20, "1", "", "x", True, False, None, [], [1], ["x"], {"a": 1},
    "2024-05-01", "2024-05-01T10:00:00", "2024-05-01T12:00:00+02:00", "2024-05-01 09:59:59.500Z",
    # some of which look like dates, and are none
    "2024-02-29", "2023-02-29", "2024-04-31", "1900-02-29", "2000-02-29", "0000-05-01",
    "2024-05-01 10:00 noon", "2024-05-01T10:00:00+99:00",
]  # fmt: skip

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def as_date(value: Any) -> datetime | None:
    try:
        date = (
            value
            if isinstance(value, datetime)
            else datetime.fromisoformat(value.replace("Z", "+00:00"))
        )
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
    # the first eighteen: others only stand in documents
    ordered = [v for v in VALUES[:18] if v is None or as_date(v) or isinstance(v, (int, float))]
    ordered = [v for v in ordered if not isinstance(v, bool)]
    filters += [compare(sign, value) for sign in ORDER for value in ordered]
    lists = ([], [None], [1, "x"], [True, []], VALUES)
    filters += [compare(sign, value) for sign in ("in", "not in") for value in lists]
    filters += [compare("==", 1, "meta.deep.v"), compare("==", "x", "v"), compare("!=", 1, "no")]
    filters += [{"operator": "NOT", "conditions": [each]} for each in filters]
    pairs = itertools.product(filters[::7], filters[::11])
    joined = zip(itertools.cycle(("AND", "OR", "NOT")), pairs)
    return filters + [{"operator": sign, "conditions": [*pair]} for sign, pair in joined]


def compare_all(
    conn: Conn, columns: Columns, metas: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> None:
    """Which of these rows, whose keys are numbers from 0, each filter is met by."""
    for each in filters:
        condition, parameters = columns.write_condition(to_filter(each, columns))
        query = sql.SQL("SELECT id::int, ({}) IS TRUE FROM documents ORDER BY 1").format(condition)
        found = conn.execute(query, parameters).fetchall()
        assert found == [(i, is_met(each, meta)) for i, meta in enumerate(metas)], each


def fill(conn: Conn, metas: list[dict[str, Any]], **options: Any) -> Columns:
    documents = Documents(pybq.Table(conn, "documents"), json="meta", **options)
    ids = [str(i) for i in range(len(metas))]
    assert documents.do(write, ids, ids, metas, np.ones((len(metas), 2))) == len(metas)
    return documents.columns


def test_filters_mean_what_python_says(conn: Conn) -> None:
    metas: list[dict[str, Any]] = [{}, *({"v": v} for v in VALUES), {"deep": {"v": 1}}]
    metas += [{"deep": [{"v": 1}]}, {"deep.v": 1}]
    columns = {"content": "text", "meta": "jsonb"}
    pybq.Table.create(conn, "documents", 2, id_type="text", columns=columns)
    compare_all(conn, fill(conn, metas, indexed=["v"]), metas, make_filters())
    # in columns of JSON
    conn.execute("DROP TABLE documents")
    columns |= {"v": "jsonb", "deep": "jsonb", "no": "jsonb"}
    pybq.Table.create(conn, "documents", 2, id_type="text", columns=columns)
    texts = [{k: json.dumps(v) for k, v in meta.items() if k != "deep.v"} for meta in metas]
    compare_all(conn, fill(conn, texts), metas, make_filters()[::3])


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("text", [v for v in VALUES if isinstance(v, str)]),
        ("integer", [0, 1, -5]),
        ("double precision", [0.0, 1.0, -2.5]),
        ("boolean", [True, False]),
        ("timestamptz", [datetime(2024, 5, 1, 10, tzinfo=timezone.utc)]),
        ("timestamp", [datetime(2024, 5, 1, 10), datetime(2025, 1, 1)]),
        ("date", [datetime(2024, 5, 1), datetime(2025, 1, 1)]),
    ],
)
def test_columns_mean_the_same(conn: Conn, type_: str, values: list[Any]) -> None:
    """A number is no text there, either; dates do not depend on the session's time zone."""
    conn.execute("SET timezone = 'America/Los_Angeles'")
    columns = {"content": "text", "v": type_, "meta": "jsonb"}
    pybq.Table.create(conn, "documents", 2, id_type="text", columns=columns)
    metas: list[dict[str, Any]] = [{}, *({"v": v} for v in values)]
    filters = [each for each in make_filters() if "deep" not in str(each)]
    if isinstance(values[0], datetime):  # texts that are compared for equality the server reads
        filters = [
            each for each in filters if not re.search("operator': '([=!]=|in|not in)", str(each))
        ]
    assert len(filters) > 40
    compare_all(conn, fill(conn, metas), metas, filters)


def test_fields_of_documents_are_no_metadata(conn: Conn) -> None:
    columns = {"content": "text", "meta": "jsonb"}
    pybq.Table.create(conn, "documents", 2, columns=columns)
    known = fill(conn, [{"id": "x", "content": 7}, {"id": 0}])
    for filters, expected in (
        ({"field": "id", "operator": "==", "value": "1"}, [1]),
        ({"field": "id", "operator": "in", "value": ["0", None]}, [0]),
        ({"field": "meta.id", "operator": "==", "value": "x"}, [0]),
        ({"field": "content", "operator": "!=", "value": "1"}, [0]),
        ({"field": "content", "operator": "==", "value": 1}, []),
        ({"field": "meta.content", "operator": "==", "value": 7}, [0]),
    ):
        condition, parameters = known.write_condition(to_filter(filters, known))
        query = sql.SQL("SELECT id FROM documents WHERE {} ORDER BY 1").format(condition)
        assert [i for (i,) in conn.execute(query, parameters)] == expected, filters


def test_what_is_no_filter_is_refused(conn: Conn) -> None:
    pybq.Table.create(conn, "documents", 2, columns={"content": "text", "meta": "jsonb"})
    columns = Columns(pybq.Table(conn, "documents"), json="meta")
    filters: list[dict[str, Any]] = [
        {"field": "meta.v"},
        {"field": "meta.v", "operator": "=="},
        {"field": "meta.v", "operator": "=", "value": 1},
        {"field": "meta.v", "operator": ">", "value": "x"},
        {"field": "meta.v", "operator": ">", "value": [1]},
        {"field": "meta.v", "operator": "in", "value": "x"},
        {"field": "embedding", "operator": "==", "value": [1]},
        {"field": "id", "operator": "==", "value": "x"},
        {"operator": "AND"},
        {"operator": "XOR", "conditions": [{"field": "v", "operator": "==", "value": 1}]},
    ]
    for each in filters:
        with pytest.raises(ValueError, match="expected"):
            to_filter(each, columns)
    for none in (None, {}):
        assert to_filter(none, columns) is None
