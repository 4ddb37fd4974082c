"""Tables that Citus distributes, of which the server that is asked has the names and no rows."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql

from pybq._catalog.database import Database


async def is_distributed(db: Database, table: int) -> bool:
    """Whether the rows of a table are in shards."""
    # what is not installed cannot be named
    if await db.fetch_one("SELECT to_regclass('pg_catalog.pg_dist_partition')") == (None,):
        return False
    row = await db.fetch_one(
        "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = %s)", [table]
    )
    return row == (True,)


async def set_everywhere(db: Database, values: Mapping[str, str]) -> None:
    """Change settings until the end of the transaction, or savepoint, here and on the workers.

    Citus sends them SET LOCAL, if told so, and nothing that set_config does.
    """
    for name, value in {"citus.propagate_set_commands": "local", **values}.items():
        await db.execute(sql.SQL("SET LOCAL {} = {}").format(sql.SQL(name), sql.Literal(value)))


def name_shard(schema: str, name: str) -> sql.Composable:
    """SQL for an index of the shard that is asked, by its name here.

    For run_command_on_shards, which hands the command to format(), with the shard's table.
    """
    quoted = sql.Identifier(schema, name).as_string(None).replace("%", "%%")
    # that number is the last of its name, which may be quoted
    number = "substring($bq$%1$s$bq$ FROM '(\\d+)\"?$')::bigint"
    return sql.SQL("shard_name({}::regclass, {})::regclass").format(
        sql.Literal(quoted), sql.SQL(number)
    )
