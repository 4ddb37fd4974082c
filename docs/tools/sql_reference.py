"""Markdown of what the extensions put into the catalogs, by its comments: `sql_reference.py`.

A private server is asked, or the one of `--dsn`.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg

import pybq

# Called by the system only: input and output of types, handlers, parts of aggregates and of
# operator classes, what implements operators of bytes.  Their signatures say it: `internal`,
# `cstring`; casts' functions take whether the cast is explicit.
PUBLIC = """
    NOT p.prorettype IN ('internal'::regtype, 'cstring'::regtype, 'index_am_handler'::regtype)
    AND NOT p.proargtypes::oid[] && ARRAY['internal'::regtype::oid, 'cstring'::regtype::oid,
        'cstring[]'::regtype::oid]
    AND NOT (p.pronargs = 3 AND p.oid IN (SELECT castfunc FROM pg_cast))
    AND p.oid NOT IN (SELECT typsend FROM pg_type)
    AND p.oid NOT IN (SELECT amproc FROM pg_amproc)
    AND obj_description(p.oid, 'pg_proc') NOT LIKE 'implementation of %'
    AND obj_description(p.oid, 'pg_proc') NOT LIKE 'trigger of %'
"""

MEMBERS = """
    (SELECT d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE d.classid = '{}'::regclass AND d.refclassid = 'pg_extension'::regclass
        AND d.deptype = 'e' AND e.extname IN ('bq', 'bq_pgvector'))
"""

TYPES = f"""
    SELECT t.typname, obj_description(t.oid, 'pg_type') FROM pg_type AS t
    WHERE t.oid IN {MEMBERS.format("pg_type")} AND obj_description(t.oid, 'pg_type') IS NOT NULL
    ORDER BY t.oid
"""

OPERATORS = f"""
    SELECT format('%s %s %s', format_type(o.oprleft, NULL), o.oprname,
            format_type(o.oprright, NULL)),
        format_type(o.oprresult, NULL), obj_description(o.oid, 'pg_operator')
    FROM pg_operator AS o WHERE o.oid IN {MEMBERS.format("pg_operator")} ORDER BY o.oid
"""

CASTS = f"""
    SELECT format_type(c.castsource, NULL) || ' → ' || format_type(c.casttarget, NULL),
        CASE c.castcontext WHEN 'i' THEN 'implicit' WHEN 'a' THEN 'on assignment'
            ELSE 'explicit' END,
        obj_description(c.oid, 'pg_cast')
    FROM pg_cast AS c WHERE c.oid IN {MEMBERS.format("pg_cast")}
        AND obj_description(c.oid, 'pg_cast') IS NOT NULL ORDER BY c.oid
"""

FUNCTIONS = f"""
    SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
        CASE p.prokind WHEN 'a' THEN 'aggregate' ELSE CASE p.provolatile
            WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END END,
        obj_description(p.oid, 'pg_proc')
    FROM pg_proc AS p WHERE p.oid IN {MEMBERS.format("pg_proc")} AND {PUBLIC} ORDER BY p.oid
"""

CLASSES = f"""
    SELECT c.opcname, am.amname, format_type(c.opcintype, NULL),
        obj_description(c.oid, 'pg_opclass'),
        (SELECT string_agg(o.oprname, '` `' ORDER BY a.amopstrategy) FROM pg_amop AS a
            JOIN pg_operator AS o ON o.oid = a.amopopr
            WHERE a.amopfamily = c.opcfamily AND a.amoplefttype = c.opcintype
                AND (a.amoprighttype = c.opcintype OR a.amoppurpose = 'o'))
    FROM pg_opclass AS c JOIN pg_am AS am ON am.oid = c.opcmethod
    WHERE c.oid IN {MEMBERS.format("pg_opclass")}
    ORDER BY am.amname <> 'bq', obj_description(c.oid, 'pg_opclass') LIKE 'filters %', c.oid
"""

RELATIONS = f"""
    SELECT c.relname, obj_description(c.oid, 'pg_class'), a.attname,
        format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum)
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE (c.oid IN {MEMBERS.format("pg_class")} AND has_table_privilege('public', c.oid, 'SELECT')
            OR c.oid = (SELECT typrelid FROM pg_type WHERE typname = 'bq_statistics'))
        AND NOT a.attisdropped
    ORDER BY c.oid, a.attnum
"""

SETTINGS = """
    SELECT name, boot_val, coalesce(array_to_string(enumvals, ', '), min_val || ' to ' || max_val),
        short_desc || coalesce(' ' || extra_desc, '')
    FROM pg_settings WHERE name LIKE 'bq.%' ORDER BY name
"""


# Functions by what one wants of them: how their names begin.  All others are of codes.
CODES = "Functions: codes and distances"
GROUPS = {
    "Functions: indexes": (
        "bq_index_info",
        "bq_index_check",
        "bq_recall",
        "bq_search",
        "bq_index_",
    ),
    CODES: (),
    "Functions: statistics": (
        "bq_statistics",
        "bq_merge",
        "bq_coordinates",
        "bq_column_statistics",
        "bq_sample_statistics",
    ),
    "Functions: what drivers write": (
        "bq_register_",
        "bq_rename_",
        "bq_forget_",
        "bq_set_next_",
        "bq_decide",
        "bq_add_",
        "bq_keep_",
        "bq_record_",
    ),
}


def group_of(name: str) -> str:
    """The heading that a function stands below."""
    return next((head for head, begins in GROUPS.items() if name.startswith(begins)), CODES)


def cell(text: Any) -> str:
    """What is safe between two bars of a table."""
    escaped = str(text if text is not None else "").replace("|", "\\|")
    return escaped.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def write(conn: psycopg.Connection[Any]) -> Iterator[str]:
    """Lines of the reference."""

    def rows(query: str) -> list[Any]:
        return conn.execute(query.encode()).fetchall()

    functions = rows(FUNCTIONS)

    def section(group: str) -> Iterator[str]:
        yield from [f"## {group}", ""]
        for name, arguments, result, kind, text in functions:
            if group_of(name) == group:
                signature = f"{name}({arguments})"
                yield from [f"`{signature}` → `{result}`", f": {cell(text)} *({kind})*", ""]

    yield from ["## Operator classes", ""]
    classes = [
        [f"`{name}`", f"`{method}`", f"`{kind}`", f"`{signs}`", cell(text)]
        for name, method, kind, text, signs in rows(CLASSES)
    ]
    yield from table(["class", "method", "type", "operators", ""], classes)

    yield from ["## Settings", ""]
    settings = [
        [f"`{name}`", f"`{default}`", cell(values), cell(text)]
        for name, default, values, text in rows(SETTINGS)
    ]
    yield from table(["setting", "default", "values", ""], settings)

    first, *others = GROUPS
    yield from section(first)

    yield from ["## Types", ""]
    yield from table(["type", ""], [[f"`{n}`", cell(text)] for n, text in rows(TYPES)])

    yield from ["## Operators", ""]
    operators = [[f"`{sign}`", f"`{of}`", cell(text)] for sign, of, text in rows(OPERATORS)]
    yield from table(["operator", "gives", ""], operators)

    yield from ["## Casts", ""]
    casts = [[f"`{cast}`", when, cell(text)] for cast, when, text in rows(CASTS)]
    yield from table(["cast", "", ""], casts)

    for group in others:
        yield from section(group)

    before = None
    for relation, text, column, kind, about in rows(RELATIONS):
        if relation != before:
            yield from ["", f"## `{relation}`", "", cell(text), ""] if text else []
            if not text:
                yield from ["", f"## `{relation}`", ""]
            yield from ["| column | type | |", "|---|---|---|"]
            before = relation
        yield f"| `{column}` | `{kind}` | {cell(about)} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dsn", help="a server whose extensions may be created; a private one if left out"
    )
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dsn = arguments.dsn or stack.enter_context(pybq.serve()).dsn
        conn = stack.enter_context(psycopg.connect(dsn))
        conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE")
        conn.execute("SELECT bq_simd()")  # loads the library, and with it its settings
        print("\n".join(write(conn)))
        conn.rollback()


if __name__ == "__main__":
    main()
