"""Alembic: autogenerate that sees bq's types, indexes and extension, without hand edits.

In ``env.py``; importing this module registers what compares, the two functions are asked by
Alembic how a type is written, and which tables are ours to leave alone:

.. code-block:: python

    from pybq.alembic import include_name, render_item

    context.configure(
        connection=connection,
        target_metadata=target_metadata,
        include_name=include_name,
        render_item=render_item,
    )

What autogenerate then does beyond its own:

- Migrations import the modules of the types they name, pybq's and pgvector's.
- If a model has a type of an extension that the database lacks, or an index ``USING bq``, the
  migration starts with ``CREATE EXTENSION IF NOT EXISTS bq`` (or ``vector``; ``bq_pgvector`` for
  an index on a column of pgvector's types), and its downgrade
  ends with ``DROP EXTENSION``, which the server refuses while anything uses it. The role that
  migrates must be allowed to create extensions; else have an administrator do it once, and
  autogenerate finds it there. A development database that has had the extension all along
  gives no such line: add ``op.execute("CREATE EXTENSION IF NOT EXISTS bq")`` to the first
  migration, or generate that from an empty database.
- An index ``USING bq`` whose access method, operator classes or options differ from the model is
  dropped and created again (Alembic itself compares columns only). To change `recall` or `probes`
  of a large index without building it again, write
  ``op.execute("ALTER INDEX ... SET (recall = 0.99)")`` instead.

What it cannot see: the expression of a generated column is compared, but a change only gives a
warning, as for every generated column; `transform` of a `BQVec` is no part of the database.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pybq.errors import needed_by

with needed_by("pybq.alembic"):
    from alembic.autogenerate import comparators
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations import ops
    from sqlalchemy import Connection, Index, Table, text

import pybq.sqlalchemy  # noqa: F401  for reflection

__all__ = ["include_name", "render_item"]

# Where the types of an extension come from.
_EXTENSIONS = {"pybq": "bq", "pgvector": "vector"}
# Each needs those before it.
_ORDER = ("vector", "bq", "bq_pgvector")


def include_name(name: str | None, kind: str, parent_names: Any) -> bool:
    """Leave out the tables of the extension itself; for `context.configure`.

    Alembic takes a table that is in no model for one to be dropped. Parameters as Alembic gives
    them; combine with conditions of your own by ``and``.
    """
    return not (kind == "table" and name in ("bq_column_data", "bq_loads"))


def render_item(kind: str, item: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Import what a migration needs for types of pybq and pgvector; for `context.configure`.

    Parameters
    ----------
    kind, item, autogen_context
        As Alembic calls it.

    Returns
    -------
    False
        Always: the text itself is Alembic's own. A `render_item` of one's own calls this one
        first, or last.
    """
    if kind == "type" and _package(item) in _EXTENSIONS:
        autogen_context.imports.add(f"import {type(item).__module__}")
    return False


@comparators.dispatch_for("schema")
def compare_extensions(
    autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: Any
) -> None:
    """Create the extensions whose types or access method the models use."""
    connection = autogen_context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    used = {
        _EXTENSIONS[package]
        for table in autogen_context.sorted_tables
        for column in table.columns
        if (package := _package(column.type)) in _EXTENSIONS
    }
    for table in autogen_context.sorted_tables:
        for index in table.indexes:
            if _storage(index)[0] == "bq":
                used |= {"vector", "bq", "bq_pgvector"} if _is_on_vectors(index) else {"bq"}
    there = set(connection.scalars(text("SELECT extname FROM pg_extension")))
    missing = [name for name in _ORDER if name in used - there]
    upgrade_ops.ops[:0] = [CreateExtensionOp(name) for name in missing]


@comparators.dispatch_for("table")
def compare_index_options(
    autogen_context: AutogenContext,
    modify_table_ops: ops.ModifyTableOps,
    schema: str | None,
    name: str,
    conn_table: Table | None,
    metadata_table: Table | None,
) -> None:
    """Replace indexes whose access method or options changed, if one of the two is bq's."""
    if conn_table is None or metadata_table is None:
        return
    assert autogen_context.connection is not None
    impl = autogen_context.migration_context.impl
    found = {index.name: index for index in conn_table.indexes}
    replaced = {
        op.index_name
        for op in modify_table_ops.ops
        if isinstance(op, (ops.CreateIndexOp, ops.DropIndexOp))
    }
    for index in sorted(metadata_table.indexes, key=lambda index: str(index.name)):
        old = found.get(index.name)
        if old is None or index.name in replaced:
            continue
        if impl.compare_indexes(index, old).is_different:
            continue  # Alembic replaces it, before this or after
        (method, options), (old_method, old_options) = _storage(index), _storage(old)
        if "bq" not in (method, old_method):
            continue
        same = (method, options) == (old_method, old_options)
        if not same or _classes_differ(autogen_context.connection, index, schema):
            modify_table_ops.ops += [
                ops.DropIndexOp.from_index(old),
                ops.CreateIndexOp.from_index(index),
            ]


class CreateExtensionOp(ops.ExecuteSQLOp):
    """`CREATE EXTENSION`, and `DROP EXTENSION` to undo it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"CREATE EXTENSION IF NOT EXISTS {name}")
        self.name = name

    def reverse(self) -> ops.ExecuteSQLOp:
        return ops.ExecuteSQLOp(f"DROP EXTENSION {self.name}")


def _package(item: Any) -> str:
    return type(item).__module__.partition(".")[0]


def _storage(index: Index) -> tuple[str, dict[str, str]]:
    """Access method and options of an index, as the catalog has them."""
    options = index.dialect_options["postgresql"]
    given = options["with"] or {}
    return options["using"] or "btree", {name.lower(): str(each) for name, each in given.items()}


def _is_on_vectors(index: Index) -> bool:
    """Whether an index is on pgvector's types themselves; of an expression its class tells."""
    return any(_package(getattr(key, "type", None)) == "pgvector" for key in index.expressions) or (
        any(re.search(r"\b(vector|halfvec)_\w+_ops$", name or "") for name in _classes(index))
    )


def _classes(index: Index) -> list[str | None]:
    """Operator class of each key, as the model names it, maybe in the text of an expression."""
    classes = index.dialect_options["postgresql"]["ops"] or {}
    named = [classes.get(getattr(key, "key", None)) for key in index.expressions]
    written = [re.search(r"\s(\S+_ops)$", str(key).strip()) for key in index.expressions]
    return [name or (found and found[1]) for name, found in zip(named, written, strict=True)]


def _classes_differ(connection: Connection, index: Index, schema: str | None) -> bool:
    """Whether an index has other operator classes than its model; one that is not named is the
    default. By the catalog, as not every version of SQLAlchemy reflects them.
    """
    rows = connection.execute(
        text(
            """
            SELECT o.opcname, o.opcdefault
            FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            CROSS JOIN unnest(i.indclass::oid[]) WITH ORDINALITY AS c(oid, position)
            JOIN pg_opclass o ON o.oid = c.oid
            WHERE x.relname = :name AND x.relnamespace = coalesce(
                to_regnamespace(quote_ident(:schema)), current_schema()::regnamespace)
            ORDER BY c.position
            """
        ),
        {"name": index.name, "schema": schema},
    )
    wanted = _classes(index)
    there = [(name, default) for name, default in rows]
    return len(there) != len(wanted) or any(
        not default if name is None else name.rpartition(".")[2] != opclass
        for name, (opclass, default) in zip(wanted, there, strict=True)
    )
