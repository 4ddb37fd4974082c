"""Is all well: server, extensions, kernels, codes, each table of pybq, and each index of bq."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from psycopg import Connection, Error
from psycopg.errors import InsufficientPrivilege
from psycopg.rows import tuple_row

import pybq
from pybq._catalog.database import BlockingDatabase, run
from pybq._catalog.indexes import MAX_INDEXED_DIM
from pybq._catalog.registry import Known, find_all
from pybq._codes.metric import name_opclass
from pybq._codes.quantizer import Quantizer

# PostgreSQL versions that the extension is made for.
OLDEST, NEWEST = 15, 18

# Extensions: how bad it is to lack one, what follows, where to get it.
_MISSING: dict[str, tuple[Literal["warning", "error"], str, str]] = {
    "bq": ("error", "", "make install, in the sources of bq"),
    "vector": ("warning", ": tables can keep codes only", "the package of pgvector"),
    "bq_pgvector": (
        "warning",
        ": columns of pgvector cannot be indexed",
        "make install, in the sources of bq",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What was looked at.
    state : {"ok", "warning", "error"}
        A warning is something to know; with an error, something does not work.
    text : str
        What was found.
    hint : str
        What to do; empty if there is nothing to do.
    """

    name: str
    state: Literal["ok", "warning", "error"]
    text: str
    hint: str = ""


def examine(conn: Connection[Any], check_indexes: bool = False) -> list[Finding]:
    """Look at a database.

    Parameters
    ----------
    conn : psycopg.Connection
    check_indexes : bool
        Also read each index in full by `bq_index_check`, which keeps writers out meanwhile.

    Returns
    -------
    list of Finding
    """
    found = list(_examine_server(conn))
    if any(finding.name == "bq" and finding.state == "error" for finding in found):
        return found
    found += _examine_codes(conn)
    known = run(find_all(BlockingDatabase(conn)))
    found += _examine_tables(conn, known, check_indexes)
    found += _examine_other_indexes(conn, known, check_indexes)
    found += _examine_vectors(conn, known)
    return found


def _examine_server(conn: Connection[Any]) -> Iterator[Finding]:
    version, major = conn.info.server_version, conn.info.server_version // 10000
    supported = OLDEST <= major <= NEWEST
    yield Finding(
        "server",
        "ok" if supported else "warning",
        f"PostgreSQL {major}.{version % 10000}",
        "" if supported else f"bq is tested on PostgreSQL {OLDEST} to {NEWEST}",
    )
    extensions = {
        name: (installed, default)
        for name, installed, default in _fetch(
            conn,
            "SELECT name, installed_version, default_version FROM pg_available_extensions"
            " WHERE name IN ('bq', 'bq_pgvector', 'vector')",
        )
    }
    found = set()
    for name, (state, consequence, source) in _MISSING.items():
        installed, default = extensions.get(name, (None, None))
        if installed is None:
            if name == "bq_pgvector" and "vector" not in found:
                continue  # of which it is said already
            hint = f"run CREATE EXTENSION {name}"
            if default is None:
                hint = f"install it on the server ({source}), then {hint}"
            yield Finding(name, state, f"not in this database{consequence}", hint)
            continue
        found.add(name)
        if name == "vector":
            yield Finding(name, "ok", installed)
        else:
            yield _examine_version(name, installed, default)


def _examine_version(name: str, installed: str, default: str) -> Finding:
    if installed != default:
        text = f"{installed}, the server has {default}"
        return Finding(name, "warning", text, f"run ALTER EXTENSION {name} UPDATE")
    if installed != pybq.__version__:
        text = f"{installed}, and pybq {pybq.__version__}"
        return Finding(name, "warning", text, "update the older one: both should be of one version")
    return Finding(name, "ok", f"{installed}, the same as pybq")


def _examine_codes(conn: Connection[Any]) -> Iterator[Finding]:
    ((server,),) = _fetch(conn, "SELECT bq_simd()")
    slow = [
        side for side, kernel in (("server", server), ("pybq", pybq.simd())) if kernel == "portable"
    ]
    yield Finding(
        "kernel",
        "warning" if slow else "ok",
        f"{server} on the server, {pybq.simd()} in pybq",
        f"{' and '.join(slow)}: no faster kernel for this CPU, or bq.kernel is set" if slow else "",
    )
    vectors = np.random.default_rng(0).standard_normal((4, 200), dtype=np.float32)
    differ = [
        transform
        for transform in (0, 1)
        for vector in vectors
        if Quantizer(200, transform).encode(vector).tobytes()
        != _fetch(
            conn, "SELECT bqvec_send(bq_encode(%s::real[], %s))", [vector.tolist(), transform]
        )[0][0]
    ]
    yield Finding(
        "codes",
        "error" if differ else "ok",
        "server and pybq make different codes" if differ else "the same bytes from both sides",
        "install extension and pybq from the same version" if differ else "",
    )


def _examine_tables(
    conn: Connection[Any], known: list[Known], check_indexes: bool
) -> Iterator[Finding]:
    query = """
        SELECT c.relname, n.nspname, pg_table_is_visible(c.oid),
               array(SELECT i.indexrelid::regclass::text FROM pg_index i
                     JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
                     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                     WHERE i.indrelid = c.oid AND m.amname = 'bq' AND a.attname = %s
                     AND i.indisvalid ORDER BY 1),
               array(SELECT i.indexrelid::regclass::text FROM pg_index i
                     LEFT JOIN pg_attribute a
                     ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                     WHERE i.indrelid = c.oid AND NOT i.indisvalid
                     AND (a.attname = %s) IS NOT TRUE ORDER BY 1)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
        """
    for column in known:
        name = f"table {column.table}"
        found = _fetch(conn, query, [column.column, column.next_column, column.oid])
        if not found:
            yield Finding(name, "warning", "no longer there", "delete its row from bq_columns")
            continue
        if not column.is_codes:
            continue
        ((table, schema, visible, indexes, invalid),) = found
        empty = column.transform is None
        axes = "nothing ingested" if empty else f"transform {column.transform}"
        text = f"{column.count:,} rows ingested, {axes}"
        if indexes or empty:
            yield Finding(name, "ok", text)
        else:
            hint = "searches read every code; for a large table: CREATE INDEX ... USING bq"
            yield Finding(name, "ok", f"{text}, no index", hint)
        if column.next_transform is not None:
            text = f"being encoded anew, with transform {column.next_transform}"
            arguments = [table]
            if not visible:
                arguments += ["--schema", schema]
            hint = f"if nobody is at it, continue: pybq reencode {shlex.join(arguments)}"
            yield Finding(name, "warning", text, hint)
        for index in invalid:
            yield Finding(f"index {index}", "error", "not valid", f"run REINDEX INDEX {index}")
        for index in indexes:
            yield _examine_index(conn, index, check_indexes)


def _examine_other_indexes(
    conn: Connection[Any], known: list[Known], check: bool
) -> Iterator[Finding]:
    """Indexes of what pybq knows nothing else of: columns of pgvector, codes of others."""
    found = _fetch(
        conn,
        """
        SELECT i.indexrelid::regclass::text, i.indisvalid, p.pid IS NOT NULL, i.indrelid, a.attname
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid
        WHERE m.amname = 'bq' AND x.relkind = 'i' ORDER BY 1
        """,
    )
    codes = [each for each in known if each.is_codes]
    examined = {(each.oid, name) for each in codes for name in (each.column, each.next_column)}
    for index, valid, being_built, table, column in found:
        if (table, column) in examined and column is not None:
            continue
        if valid:
            yield _examine_index(conn, index, check)
        elif being_built:
            yield Finding(f"index {index}", "ok", "being built")
        elif all(each.oid != table for each in codes):  # of those it is said already
            yield Finding(f"index {index}", "error", "not valid", f"run REINDEX INDEX {index}")


def _examine_vectors(conn: Connection[Any], known: list[Known]) -> Iterator[Finding]:
    """Columns of pgvector that no index of bq answers for, and no codes."""
    found = _fetch(
        conn,
        """
        SELECT c.oid, c.oid::regclass::text, c.relname, n.nspname, a.attname,
               quote_ident(a.attname), t.typname, greatest(a.atttypmod, d.typtypmod),
               pg_table_is_visible(c.oid),
               array(SELECT o.opcname::text FROM pg_index i
                     JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
                     JOIN pg_opclass o ON o.oid = i.indclass[0]
                     WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indisvalid
                     AND m.amname IN ('hnsw', 'ivfflat') ORDER BY 1)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type d ON d.oid = a.atttypid  -- which may be a domain
        JOIN pg_type t ON t.oid = coalesce(nullif(d.typbasetype, 0), d.oid)
        JOIN pg_depend p ON p.classid = 'pg_type'::regclass AND p.objid = t.oid AND p.deptype = 'e'
        JOIN pg_extension e ON e.oid = p.refobjid AND e.extname = 'vector'
        WHERE c.relkind IN ('r', 'm', 'p') AND NOT c.relispartition
        AND c.relpersistence <> 't' AND t.typname IN ('vector', 'halfvec')
        AND NOT EXISTS (
            SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            JOIN pg_am m ON m.oid = x.relam WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum
            AND m.amname = 'bq')
        ORDER BY 2, a.attnum
        """,
    )
    metrics = {(each.oid, each.column): each.metric for each in known}
    with_codes = {(each.oid, each.source) for each in known if each.is_codes}
    for oid, table, relname, schema, column, quoted, type_name, *rest in found:
        dim, visible, others = rest
        if (oid, column) in with_codes:
            continue
        name = f"table {table}"
        text = f"vectors in {column}, no index of bq"
        if dim > MAX_INDEXED_DIM:
            hint = f"none can be made: an index has up to {MAX_INDEXED_DIM:,} dimensions"
        elif dim < 1:
            hint = f"none can be made: declare the dimensions of {quoted}, {type_name}(n)"
        elif others:
            text += f", one for {', '.join(others)}"
            arguments = [relname, "--column", column]
            if not visible:
                arguments += ["--schema", schema]
            hint = f"run pybq adopt {shlex.join(arguments)} --compare"
        else:
            opclass = name_opclass(type_name, metrics.get((oid, column), "cosine"))
            hint = f"CREATE INDEX ON {table} USING bq ({quoted} {opclass})"
        yield Finding(name, "ok", text, hint)


def _examine_index(conn: Connection[Any], index: str, check: bool) -> Finding:
    name = f"index {index}"
    try:
        if check:
            _fetch(conn, "SELECT bq_index_check(%s::regclass, true)", [index])
        ((lists, rows, hint),) = _fetch(
            conn, "SELECT lists, live_rows, hint FROM bq_index_info(%s::regclass)", [index]
        )
    except InsufficientPrivilege as error:
        return Finding(name, "warning", f"not looked at: {error}", "ask as the table's owner")
    except Error as error:
        # Class XX: data or index corrupted, or what must not happen. Others, like a timeout or a
        # lock that another session has, say nothing about the index.
        if (error.sqlstate or "").startswith("XX"):
            return Finding(name, "error", str(error), f"run REINDEX INDEX {index}")
        return Finding(name, "warning", f"not looked at: {error}", "look again when it is not used")
    text = f"{rows:,} rows in {lists:,} {'list' if lists == 1 else 'lists'}"
    if check:
        text += ", checked"
    return Finding(name, "warning" if hint else "ok", text, hint or "")


def _fetch(conn: Connection[Any], query: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query.encode(), parameters).fetchall()
