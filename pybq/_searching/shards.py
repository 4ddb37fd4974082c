"""Tables of which partitions are on other servers: which of them a search has to ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pybq._catalog.database import Database
from pybq._catalog.layout import Layout


class Part(NamedTuple):
    """A partition by its name."""

    schema: str
    name: str


async def find_parts(
    db: Database, layout: Layout, where: str, alias: str | None, parameters: Mapping[str, Any]
) -> tuple[Part, ...]:
    """The partitions that may have rows that meet a condition, as they are now.

    Each is named in the statement, which therefore must not outlive an ATTACH or DETACH.
    """
    rows = await db.fetch(
        "SELECT n.nspname, c.relname FROM pg_partition_tree(%s) JOIN pg_class c ON c.oid = relid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE isleaf AND c.relkind <> 'p'"
        " ORDER BY c.oid",
        [layout.oid],
    )
    if where:
        table = layout.identifier.as_string(db.connection).replace("%", "%%")
        named = table if alias is None else f"{table} AS {alias}"
        explain = f"EXPLAIN (FORMAT JSON, VERBOSE) SELECT FROM {named} WHERE (\n{where}\n)"
        plan = await db.fetch_one(explain, parameters)
        assert plan is not None
        scanned = list(_find_scanned(plan[0][0]["Plan"]))
        # A join that is done by another server names no table.
        if None not in scanned:
            rows = [row for row in rows if row in scanned]
    return tuple(Part(*row) for row in rows)


def _find_scanned(plan: dict[str, Any]) -> Iterator[tuple[str, str] | None]:
    if "Relation Name" in plan:
        yield plan["Schema"], plan["Relation Name"]
    elif plan["Node Type"] == "Foreign Scan":
        yield None
    for part in plan.get("Plans", ()):
        yield from _find_scanned(part)
