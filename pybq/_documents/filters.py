"""Filters of frameworks, as one kind of tree -> a condition in SQL with parameters.

Values, and keys of JSON, are parameters; names of columns are quoted, and only those of the table.
A field that is missing is null, and not equal to anything but null: what `ne`, `nin` and `Not` say
is true of it, everything else is not. Values of different kinds are not equal, and have no order:
a number is no text, wherever both are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import numpy as np
from psycopg import sql

from pybq._catalog.layout import INTEGERS, Column

Operator = Literal[
    "eq", "ne", "lt", "lte", "gt", "gte", "in", "nin", "like", "ilike", "exists",
    "contains", "has_text", "has_text_any_case", "empty",
]  # fmt: skip

ORDER = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
JSON = ("json", "jsonb")

# What integers of these types can be: a larger one is compared as it is.
RANGES = {"int2": 2**15, "int4": 2**31, "int8": 2**63}

TEXTS = ("text", "varchar", "bpchar", "citext", "name")
NUMBERS = (*INTEGERS, "float4", "float8", "numeric")
DATES = ("date", "timestamp", "timestamptz")

# Texts that are dates in ISO format, which the server can read, and those of them that say their
# time zone. Each day is one of its month, as a cast fails at others.
_DAY = (
    r"(?!0000)([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]+)?)?"
_OFFSET = r"(Z|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)"
DATE, ZONE = rf"^{_DAY}({_TIME}{_OFFSET}?)?$", rf":.*{_OFFSET}$"


@dataclass(frozen=True, slots=True)
class Compare:
    """One field compared with a value.

    A field is a column of metadata, or one of JSON; as a tuple of names it is within others. A
    column of the table is meant as it is, whatever fields are called.

    `lt` and its like are of values of one kind: numbers with numbers, texts with texts; a datetime
    with columns of dates, and with texts in ISO format, which are of UTC if they do not say. `in`
    and `nin` take a list; `contains` says that an array has the value; `empty` that a field is
    null, missing or an empty array, `exists` that it is there (or not, with a value of False).
    """

    field: str | tuple[str, ...] | Column
    operator: Operator
    value: Any = None


@dataclass(frozen=True, slots=True)
class Every:
    """All of them; of none it is true."""

    parts: Sequence[Filter]


@dataclass(frozen=True, slots=True)
class Some:
    """One of them, or more; of none it is not true."""

    parts: Sequence[Filter]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


@dataclass(frozen=True, slots=True)
class Keys:
    """Documents of these keys, whatever fields are called."""

    values: Sequence[Any]


Filter: TypeAlias = "Compare | Every | Some | Not | Keys"


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the fields of a document are: in columns, all others in one of JSON."""

    key: Column
    columns: Mapping[str, Column]
    json: Column | None
    indexed: frozenset[str] = frozenset()  # in JSON, of which an index keeps the text


def write_condition(filter: Filter, fields: Fields) -> tuple[sql.Composed, dict[str, Any]]:
    """Return a condition and its parameters by name.

    Raises
    ------
    ValueError
        If there is no such field, or it cannot be compared so.
    """
    writer = _Writer(fields)
    return sql.Composed([writer.write(filter)]), writer.parameters


class _Writer:
    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self.parameters: dict[str, Any] = {}

    def write(self, filter: Filter) -> sql.Composable:
        if isinstance(filter, Not):
            return sql.SQL("({}) IS NOT TRUE").format(self.write(filter.part))
        if isinstance(filter, (Every, Some)):
            word, none = (" AND ", "true") if isinstance(filter, Every) else (" OR ", "false")
            parts = [sql.SQL("({})").format(self.write(part)) for part in filter.parts]
            return sql.SQL(word).join(parts) if parts else sql.SQL(none)
        if isinstance(filter, Keys):
            return self._write_any(self._fields.key, filter.values)
        if filter.operator == "ne":
            return self.write(Not(Compare(filter.field, "eq", filter.value)))
        if filter.operator == "nin":
            return self.write(Not(Compare(filter.field, "in", filter.value)))
        if filter.operator == "in":
            return self._write_in(filter)
        if filter.operator not in Operator.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"expected an operator that is known, got {filter.operator!r}")
        column, path = self._find(filter.field)
        if column is not None and column.type_name not in JSON:
            return self._write_column(column, filter.operator, filter.value)
        return self._write_json(column, path, filter.operator, filter.value)

    def _find(self, field: str | tuple[str, ...] | Column) -> tuple[Column | None, tuple[str, ...]]:
        """The column that a field is or begins with, and names within; without, all are of JSON."""
        if isinstance(field, Column):
            return field, ()
        path = (field,) if isinstance(field, str) else field
        column = self._fields.columns.get(path[0])
        if column is None and self._fields.json is None:
            known = ", ".join(map(repr, self._fields.columns)) or "none"
            raise ValueError(f"expected a field of {known}, got {path[0]!r}")
        if column is not None and column.type_name not in JSON and path[1:]:
            raise ValueError(
                f"expected column {column.name!r} of type jsonb to have a field {path[1]!r}, got "
                f"{column.declared}"
            )
        return column, path if column is None else path[1:]

    def _add(self, value: Any) -> sql.Placeholder:
        name = f"f{len(self.parameters)}"
        self.parameters[name] = value
        return sql.Placeholder(name)

    def _add_json(self, value: Any) -> sql.Composed:
        return sql.SQL("{}::jsonb").format(self._add(_to_json(value)))

    def _write_in(self, filter: Compare) -> sql.Composable:
        if isinstance(filter.value, str) or not isinstance(filter.value, Sequence):
            raise ValueError(
                f"expected a list of values for field {filter.field!r}, got {filter.value!r}"
            )
        values = [_as_plain(value) for value in filter.value if value is not None]
        parts: list[Filter | sql.Composable] = []
        if len(values) < len(filter.value):
            parts.append(self.write(Compare(filter.field, "eq", None)))
        column, path = self._find(filter.field)
        if column is None or column.type_name in JSON:
            field = self._write_field(column, path)
            given = self._add([_to_json(value) for value in values])
            parts.append(sql.SQL("{} = ANY ({}::text[]::jsonb[])").format(field, given))
        elif len({*map(type, values)}) < 2 and all(_has_type(column, each) for each in values):
            # one array, so that an index can answer it
            parts.append(self._write_any(column, values))
        else:
            parts += [self.write(Compare(filter.field, "eq", value)) for value in values]
        each = [sql.SQL("({})").format(part) for part in parts]
        return sql.SQL(" OR ").join(each) if each else sql.SQL("false")

    def _write_any(self, column: Column, values: Sequence[Any]) -> sql.Composed:
        type_ = sql.Identifier(column.type_schema, column.type_name)
        given = sql.SQL("{}::{}[]").format(self._add(list(values)), type_)
        return sql.SQL("{} = ANY ({})").format(column.identifier, given)

    # -- columns --------------------------------------------------------------------------

    def _write_column(self, column: Column, operator: str, value: Any) -> sql.Composable:
        name = column.identifier
        is_array = column.type_name.startswith("_")
        if operator == "exists":
            return sql.SQL("{} IS NOT NULL" if value else "{} IS NULL").format(name)
        if operator == "empty":
            none = "cardinality({0}) = 0 OR {0} IS NULL" if is_array else "{} IS NULL"
            return sql.SQL(none).format(name)
        if operator == "eq" and value is None:
            return sql.SQL("{} IS NULL").format(name)
        if operator in ("like", "ilike", "has_text", "has_text_any_case"):
            return self._write_text(sql.SQL("{}::text").format(name), operator, column.name, value)
        if operator == "contains":
            if not is_array:
                raise ValueError(f"expected column {column.name!r} to be an array")
            return sql.SQL("{} = ANY ({})").format(self._add(_as_plain(value)), name)
        sign = ORDER.get(operator, "=")
        if sign != "=" and (value is None or isinstance(value, (list, tuple, dict))):
            raise ValueError(f"expected one value to compare {column.name!r} with, got {value!r}")
        value = _as_plain(value)
        if isinstance(value, date):
            if column.type_name in TEXTS:
                return self._write_dates(name, sign, value)
            value = _without_zone(value) if column.type_name in DATES[:2] else value
        if is_array and isinstance(value, tuple):  # which would be sent as a row
            value = list(value)
        if not _has_kind(column, value):
            return sql.SQL("false")
        operand: sql.Composable = self._add(value)
        if _has_type(column, value) or (is_array and isinstance(value, list)):
            type_ = sql.Identifier(column.type_schema, column.type_name)
            operand = sql.SQL("{}::{}").format(operand, type_)
        return sql.SQL("{} {} {}").format(name, sql.SQL(sign), operand)

    def _write_text(
        self, field: sql.Composable, operator: str, name: str, value: Any
    ) -> sql.Composable:
        if not isinstance(value, str):
            raise ValueError(f"expected a text to compare {name!r} with, got {value!r}")
        text = sql.SQL("{}::text").format(self._add(value))
        if operator in ("like", "ilike"):
            return sql.SQL("{} {} {}").format(field, sql.SQL(operator.upper()), text)
        if operator == "has_text":
            return sql.SQL("strpos({}, {}) > 0").format(field, text)
        return sql.SQL("strpos(lower({}), lower({})) > 0").format(field, text)

    # -- JSON -----------------------------------------------------------------------------

    def _write_field(self, column: Column | None, path: Sequence[str]) -> sql.Composed:
        """The value of a field, null in SQL if there is none."""
        column = column or self._fields.json
        assert column is not None
        field = sql.SQL("{}::jsonb").format(column.identifier)
        for name in path:
            field = sql.SQL("({} -> {}::text)").format(field, self._add(name))
        return field

    def _write_json(
        self, column: Column | None, path: Sequence[str], operator: str, value: Any
    ) -> sql.Composable:
        name = ".".join(path) or (column.name if column else "")
        field = self._write_field(column, path)
        if operator == "exists":
            return sql.SQL("{} IS NOT NULL" if value else "{} IS NULL").format(field)
        if operator == "empty":
            return sql.SQL("coalesce({}, 'null') IN ('null', '[]')").format(field)
        if operator == "eq" and value is None:
            return sql.SQL("coalesce({}, 'null') = 'null'").format(field)
        if operator == "eq":
            if isinstance(value, (list, tuple, dict)) or column is not None:
                return sql.SQL("{} = {}").format(field, self._add_json(value))
            # of scalars the same, and what an index on the column answers
            pair = _as_plain(value)
            for each in reversed(path):
                pair = {each: pair}
            every = self._write_field(None, ())
            same = sql.SQL("{} @> {}").format(every, self._add_json(pair))
            if name not in self._fields.indexed or not isinstance(value, str) or len(path) > 1:
                return same
            # as in the index; all of it, as the text of a number may be the same
            text = sql.SQL("{} ->> {} = {}").format(every, sql.Literal(name), self._add(value))
            return sql.SQL("{} AND {}").format(text, same)
        if operator in ("like", "ilike", "has_text", "has_text_any_case"):
            text = sql.SQL("({} #>> '{{}}')").format(field)
            return self._write_text(text, operator, name, value)
        if operator == "contains":
            return sql.SQL("jsonb_typeof({0}) = 'array' AND {0} @> {1}").format(
                field, self._add_json(value)
            )
        if isinstance(value, date):
            return self._write_dates(
                sql.SQL("({} #>> '{{}}')").format(field), ORDER[operator], value
            )
        # JSON has an order across types, which nobody means.
        kinds = {bool: "boolean", int: "number", float: "number", str: "string"}
        kind = kinds.get(type(_as_plain(value)))
        if kind is None:
            raise ValueError(f"expected a number or text to compare {name!r} with, got {value!r}")
        return sql.SQL("jsonb_typeof({0}) = {1} AND {0} {2} {3}").format(
            field, sql.Literal(kind), sql.SQL(ORDER[operator]), self._add_json(value)
        )

    def _write_dates(self, text: sql.Composable, sign: str, value: date) -> sql.Composed:
        """Whether a text is a date, and compares so, whatever the session's time zone is."""
        moment = self._add(_without_zone(value).replace(tzinfo=timezone.utc))
        return sql.SQL(
            "CASE WHEN ({0} ~ {1}) IS NOT TRUE THEN false WHEN {0} ~ {2}"
            " THEN {0}::timestamptz {3} {4} ELSE ({0} || ' UTC')::timestamptz {3} {4} END"
        ).format(text, sql.Literal(DATE), sql.Literal(ZONE), sql.SQL(sign), moment)


def _without_zone(value: date) -> datetime:
    """A date, or a time, as the time that it is in UTC; without a zone it is one of UTC."""
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    return value.astimezone(timezone.utc).replace(tzinfo=None) if value.tzinfo else value


def _as_plain(value: Any) -> Any:
    """What NumPy's scalars, and arrays, stand for."""
    return value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value


def _to_json(value: Any) -> str:
    try:
        return json.dumps(_as_plain(value), allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(f"expected a value that JSON has, got {value!r}") from None


def _has_type(column: Column, value: Any) -> bool:
    """Whether a value may be cast to the type of a column, and stays what it is.

    So it is compared by the column's own operator, which indexes know.
    """
    if isinstance(value, str):
        return _has_kind(column, value)
    if column.type_name == "float4" and isinstance(value, (float, Decimal)):
        # 0.1 was rounded when it was written; as float8, which numbers come as, it is no 0.1
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.float32(value)
        return bool(np.isfinite(rounded) and (rounded != 0 or value == 0))
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    limit = RANGES.get(column.type_name, 0)
    return column.type_name in INTEGERS and -limit <= value < limit


def _has_kind(column: Column, value: Any) -> bool:
    """Whether a value can be one of a column: numbers, texts, booleans and dates are kinds."""
    if column.type_name in NUMBERS:
        return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if column.type_name in TEXTS:
        return isinstance(value, str)
    if column.type_name in DATES:
        return isinstance(value, (date, str))  # which the server reads
    return isinstance(value, bool) if column.type_name == "bool" else True
