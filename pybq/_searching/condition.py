"""What `where=` takes -> a condition in a search: its SQL text and its parameters."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg import BaseConnection, sql

from pybq._catalog.layout import Layout, check_text

if TYPE_CHECKING:
    import sqlalchemy

Where: TypeAlias = "str | sql.Composable | sqlalchemy.ColumnElement[bool] | sqlalchemy.TextClause"

# Names of parameters that begin so are ours.
RESERVED = "_bq_"


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on the rows that are searched."""

    text: str = ""  # SQL with named placeholders; empty: every row
    parameters: Mapping[str, Any] = field(default_factory=dict)
    alias: str | None = None  # what the text calls the table, if not by its name; SQL, too


def make_condition(
    where: Where | None,
    parameters: Mapping[str, Any] | None,
    layout: Layout,
    connection: BaseConnection[Any],
) -> Condition:
    """Make a condition from the arguments of `Table.search`."""
    for name in parameters or ():
        if name.startswith(RESERVED):
            raise ValueError(f"parameter {name!r}: names with {RESERVED} are taken")
    if where is None:
        if parameters:
            raise ValueError("expected where with parameters, got parameters alone")
        return Condition()
    if isinstance(where, sql.Composable):
        where = where.as_string(connection)
    if isinstance(where, str):
        if not where.strip():
            raise ValueError("expected a condition in where, got an empty text")
        check_text("where", where)
        # As in psycopg: without parameters, a percent sign is a percent sign.
        text = where.replace("%", "%%") if parameters is None else where
        return Condition(text, parameters or {})
    # Whoever has such an object has loaded SQLAlchemy.
    if "sqlalchemy" in sys.modules:
        import sqlalchemy

        if hasattr(where, "__clause_element__"):  # an attribute of a mapped class
            where = where.__clause_element__()
        if isinstance(where, (sqlalchemy.ColumnElement, sqlalchemy.TextClause)):
            return _compile(where, parameters, layout)
    raise TypeError(
        "expected where as str, psycopg.sql.Composable or SQLAlchemy expression,"
        f" got {type(where).__name__}"
    )


def _compile(where: Any, parameters: Mapping[str, Any] | None, layout: Layout) -> Condition:
    """Compile an expression of SQLAlchemy.

    It is compiled as part of a SELECT, so that subqueries know which table they refer to.
    """
    from sqlalchemy import Select, Table, literal_column, select
    from sqlalchemy.dialects.postgresql import psycopg
    from sqlalchemy.sql import visitors
    from sqlalchemy.sql.expression import Alias

    dialect = psycopg.dialect()  # type: ignore[no-untyped-call]
    statement: Select[Any] = select(literal_column("1"))

    def is_ours(table: Any) -> bool:
        table = table.element if isinstance(table, Alias) else table
        return (
            isinstance(table, Table)
            and table.name == layout.name
            and (table.schema is None or layout.named_schema in (None, table.schema))
        )

    froms: Sequence[Any] = statement.where(where).get_final_froms()
    if not froms:  # only a subquery may refer to the table
        froms = [table for table in visitors.iterate(where) if is_ours(table)][:1]
    if len(froms) > 1 or not all(map(is_ours, froms)):
        raise ValueError(
            f"expected where on the columns of table {layout.name!r},"
            f" got {', '.join(map(str, froms))}; put other tables into a subquery"
        )
    statement = statement.select_from(*froms)
    compiled: Any = statement.where(where).compile(dialect=dialect)
    state = compiled.construct_expanded_state(dict(parameters or {}))
    bare = str(statement.compile(dialect=dialect))
    prefix = f"{bare} \nWHERE "
    if not state.statement.startswith(prefix):
        raise ValueError("where: common table expressions are not supported; use a subquery")
    processors = dict(state.processors)  # of the members of lists; the other ones:
    for name, bind in compiled.binds.items():
        processors.setdefault(name, bind.type.dialect_impl(dialect).bind_processor(dialect))
    values = {
        name: value if processors.get(name) is None else processors[name](value)
        for name, value in state.parameters.items()
    }
    # As it was written, because an alias need not have a name before.
    alias = bare.rpartition(" AS ")[2] if froms and isinstance(froms[0], Alias) else None
    check_text("where", state.statement)
    return Condition(state.statement.removeprefix(prefix), values, alias)
