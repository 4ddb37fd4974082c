"""What a table is: its columns, what is searched, and how to name all that in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from psycopg import sql

from pybq._codes.arrays import by_place
from pybq._codes.metric import OPERATORS, Metric
from pybq.errors import TableError

Store = Literal["halfvec", "vector"]

# Types that vectors are kept in, and bytes per dimension.
ITEM_NBYTES = {"halfvec": 2, "vector": 4}

INTEGERS = ("int2", "int4", "int8")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its name, and its type as PostgreSQL has it."""

    name: str
    declared: str  # pg_type.typname of its type, which may be a domain
    declared_schema: str
    type_name: str  # that of its values: the type below all domains
    type_schema: str
    type_oid: int
    is_enum: bool
    generated: bool = False  # of other columns: it cannot be written

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    @property
    def type(self) -> sql.Identifier:
        """Its type, wherever that is: its schema may not be on the search path."""
        return sql.Identifier(self.declared_schema, self.declared)


# What rows are known by that have no primary key: their place, until they are updated.
PLACE = Column("ctid", "tid", "pg_catalog", "tid", "pg_catalog", 27, False)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the catalog and bq_columns say of a table that does not change with its rows."""

    name: str
    schema: str  # where it is: whatever the search path becomes, statements mean this table
    oid: int
    dim: int
    metric: Metric
    key: tuple[Column, ...]  # the primary key, or PLACE
    searched: Column  # the codes; else the vectors, and searches use an index on them
    source: Column | None  # the vectors; None: codes only
    columns: Mapping[str, Column]  # all others
    declared: bool = True  # dim is that of the column, without which there can be no index
    sharded: bool = False  # some of its partitions are foreign tables
    distributed: bool = False  # by Citus: its rows are in shards
    named_schema: str | None = None  # as the caller gave it; None: found on the search path

    @property
    def identifier(self) -> sql.Identifier:
        return name_table(self.name, self.schema)

    @property
    def remote(self) -> bool:
        """Whether rows are on other servers, which do not know the settings of a session."""
        return self.sharded or self.distributed

    @property
    def store(self) -> str | None:
        """Type of the stored vectors."""
        return None if self.source is None else self.source.type_name

    @property
    def has_codes(self) -> bool:
        return self.searched is not self.source

    @property
    def code(self) -> Column:
        """The column of codes; TableError without one."""
        self.need_codes()
        return self.searched

    def need_codes(self) -> None:
        if not self.has_codes:
            raise TableError(
                f"table {self.name!r} has no column of codes: an index of bq makes them of column "
                f"{self.searched.name!r}, and its option and setting recall say how much is found"
            )

    @property
    def has_key(self) -> bool:
        """Whether rows are known by a primary key."""
        return self.key != (PLACE,)

    def need_key(self) -> None:
        if not self.has_key:
            raise TableError(f"table {self.name!r} has no primary key to tell rows by; use SQL")

    @property
    def id(self) -> Column:
        """The primary key; TableError if it is none of one column."""
        if len(self.key) != 1 or not self.has_key:
            raise TableError(f"table {self.name!r} has no primary key of one column")
        return self.key[0]

    @property
    def keys(self) -> sql.Composed:
        """Names of the columns of the key."""
        return sql.SQL(", ").join(column.identifier for column in self.key)

    def operator(self, column: Column) -> sql.Composed:
        """The operator of the metric on a column, wherever its extension is."""
        schema = sql.Identifier(column.type_schema)
        return sql.SQL("OPERATOR({}.{})").format(schema, sql.SQL(OPERATORS[self.metric]))

    def unnest_keys(self, ids: Iterable[Any]) -> tuple[sql.Composed, list[list[Any]]]:
        """Return SQL of a set that has these keys as rows, and its parameters."""
        arrays = sql.SQL(", ").join(sql.SQL("%s::{}[]").format(each.type) for each in self.key)
        keys = self.split_keys(self._check_keys(ids))
        return sql.SQL("unnest({})").format(arrays), [
            each.tolist() if isinstance(each, np.ndarray) else list(each) for each in keys
        ]

    def _check_keys(self, ids: Any) -> Any:
        """Refuse what the server would take for other keys than those that were meant."""
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise TypeError(f"expected ids as a sequence of keys, got {type(ids).__name__}")
        keys = by_place(ids)
        if not isinstance(keys, np.ndarray):
            keys = list(keys)
        if len(self.key) > 1:
            return keys
        if isinstance(keys, np.ndarray) and keys.ndim != 1:
            raise TypeError(f"expected ids of shape (n,), got {keys.shape}")
        column = self.key[0]
        refused: tuple[type, ...] = (list, np.ndarray)  # unnest would flatten them
        if column.type_name in INTEGERS:
            refused += (float, np.floating, Decimal)  # and the server would round these
        typed = isinstance(keys, np.ndarray) and keys.dtype != object
        for key in keys[:1] if typed else keys:
            if isinstance(key, refused):
                raise TypeError(
                    f"expected ids of type {column.declared}, that of column {column.name!r}, got "
                    f"{type(key).__name__}"
                )
        return keys

    def with_keys(self, ids: Iterable[Any]) -> tuple[sql.Composed, list[list[Any]]]:
        """Return a condition on rows of these keys, and its parameters."""
        keys, parameters = self.unnest_keys(ids)
        if self.remote and len(self.key) == 1:  # a condition that other servers are sent
            (key,) = self.key
            return sql.SQL("{} = ANY (%s::{}[])").format(key.identifier, key.type), parameters
        return sql.SQL("({}) IN (SELECT * FROM {})").format(self.keys, keys), parameters

    def take_key(self, row: Sequence[Any]) -> Any:
        """The key of a row that begins with it, as `Hit.id` has it."""
        n = len(self.key)
        return row[0] if n == 1 else tuple(row[:n])

    def split_keys(self, ids: Iterable[Any]) -> list[Any]:
        """Return the values of each column of the key."""
        if len(self.key) == 1:
            return [ids]
        # A text is no tuple of its letters.
        keys = [
            tuple(key) if isinstance(key, Iterable) and not isinstance(key, str) else (key,)
            for key in ids
        ]
        if any(len(key) != len(self.key) for key in keys):
            names = ", ".join(column.name for column in self.key)
            raise ValueError(f"expected ids as tuples of {names}, the primary key")
        return [list(values) for values in zip(*keys, strict=True)] or [[] for _ in self.key]


def name_table(name: str, schema: str | None) -> sql.Identifier:
    for what, text in (("table", name), ("schema", schema)):
        check_text(f"{what} {text!r}", text or "")
    return sql.Identifier(schema, name) if schema else sql.Identifier(name)


def check_text(what: str, text: str) -> None:
    """Refuse text for a statement that the client library would cut off, and send the rest."""
    if "\0" in text:
        raise ValueError(f"{what}: expected text without NUL characters")
