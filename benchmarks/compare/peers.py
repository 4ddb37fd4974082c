"""What is compared: each peer is a class here, those in process are in libraries.py.

To add one: a class, and a line in PEERS or in libraries.LIBRARIES.  A peer is made in the process
that directs and sent to those that ask, where `open` follows; only these hold a connection.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psycopg
from common import EF_SEARCH, Conn, Statement, copy_bytes, value
from pgvector import HalfVector, Vector
from sets import K

import pybq
from pybq.psycopg import register_bq

from .data import FILTERS, Array, Data

# name of a parameter of SQL, or of the peer's own (without a dot) -> what it is set to
Setting = dict[str, Any]

RECALLS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
FILTER_EF = (40, 100, 200, 400, 1000)
# What every session of every server has, so that one process answers each query.
SESSION = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "maintenance_work_mem": "1GB",
}
INSERTED = 100  # rows of a COPY


class Missing(Exception):
    """The peer cannot be had here; the message says why, and it stands in the table."""


class Peer:
    """Something that finds neighbours."""

    name: str
    kind: ClassVar[str]  # pgvector, bq, other, in process

    def open(self, data: Data) -> None:
        """Prepare to build and to ask; Missing if that cannot be."""
        raise NotImplementedError

    def fill(self) -> None:
        """Store the rows, without an index."""

    def build(self) -> float:
        """Make the index; seconds."""
        raise NotImplementedError

    def build_filtered(self) -> float | None:
        """Make what searches with a filter need; seconds, None if nothing."""
        return None

    def drop_filtered(self) -> None:
        """Undo build_filtered."""

    def settings(self, column: str | None) -> list[Setting]:
        """What to try, from fast to thorough; none if the peer cannot filter by the column."""
        raise NotImplementedError

    def set(self, column: str | None, setting: Setting) -> None:
        """From now on, ask with this."""
        raise NotImplementedError

    def ask(self, query: int) -> Sequence[int]:
        """Rows that were found."""
        raise NotImplementedError

    def insert(self, first: int) -> float:
        """Insert INSERTED of the new rows; seconds."""
        raise NotImplementedError

    def size(self) -> dict[str, int]:
        """Bytes of the index, and of the table if there is one."""
        raise NotImplementedError

    def pid(self) -> int | None:
        """The process that builds, if it is one of this machine."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What a reader needs to repeat it."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of connections."""


class Sql(Peer):
    """A table of its own in one server, so that nothing has to be hidden from the planner."""

    kind = "pgvector"
    extension = "vector"
    on_other_servers = False  # measured there, too, if nothing else is asked for
    index: str | None = None  # what follows USING
    filtered: str | None = None  # the same, of an index with columns to filter by
    k_of_codes = False

    def __init__(self, dsn: str, schema: str, server: str = "", type_: str = "vector") -> None:
        self.dsn = dsn
        self.schema = schema
        self.server = server
        self.type = type_
        self.name = self.title() + (f" @ {server}" if server else "")
        self.table = "".join(c if c.isalnum() else "_" for c in self.title().lower())

    def title(self) -> str:
        raise NotImplementedError

    def knobs(self, column: str | None) -> list[Setting]:
        """As `settings`."""
        raise NotImplementedError

    def statement(self, where: str, setting: Setting) -> str:
        return f"SELECT id FROM {self.table}{where} ORDER BY embedding <=> $1 LIMIT {K}"

    # -- connection

    def open(self, data: Data) -> None:
        self.data = data
        self.conn: Conn = psycopg.connect(self.dsn, autocommit=True)
        self.conn.prepare_threshold = None  # statements are prepared by name
        self.conn.execute("SET client_min_messages = warning")
        known = "SELECT 1 FROM pg_available_extensions WHERE name = %s"
        if not self.conn.execute(known, [self.extension]).fetchone():
            self.conn.close()
            raise Missing(f"the server has no extension {self.extension}")
        self.conn.execute(f"CREATE EXTENSION IF NOT EXISTS {self.extension} CASCADE".encode())
        self.conn.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}".encode())
        self.conn.execute(
            "SELECT set_config('search_path', %s || ', ' || current_setting('search_path'), false)",
            [self.schema],
        )
        for name, to in SESSION.items():
            self.conn.execute(f"SET {name} = {to!r}".encode())
        if self.index is not None:
            # small tables would be read from end to end, which is not what is measured
            self.conn.execute("SET enable_seqscan = off")
        if self.extension.startswith("bq"):
            register_bq(self.conn)
        kind = HalfVector if self.type == "halfvec" else Vector
        self.vectors = [kind(q).to_binary() for q in data.queries]
        self.codes = [pybq.Query(q).to_binary() for q in data.queries] if self.k_of_codes else []
        self.statements: dict[tuple[str | None, str], Statement] = {}
        self.applied: Setting = {}
        self.with_filter = False

    def close(self) -> None:
        self.conn.close()

    def load(self) -> None:
        """Have the server load libraries, which are not what a first query is to wait for."""
        self.conn.execute(f"SELECT '[1]'::{self.type} <=> '[1]'".encode())

    def floor(self) -> float:
        """Median time of SELECT 1, by the same client."""
        return Statement(self.conn, "floor", "SELECT 1", [[]]).seconds(200)

    def pid(self) -> int | None:
        pid = self.conn.info.backend_pid
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        # the number may be one of another machine's, or of a container's
        local = self.conn.info.host.startswith("/") and command.startswith(b"postgres:")
        return pid if local else None

    def about(self) -> dict[str, Any]:
        version = "SELECT extversion FROM pg_extension WHERE extname = '{}'"
        shown = ("shared_buffers", "fsync", "synchronous_commit", "autovacuum", "block_size")
        return {
            "server": self.server or "embedded",
            "PostgreSQL": value(self.conn, "SHOW server_version"),
            "extension": f"{self.extension} {value(self.conn, version.format(self.extension))}",
            "pgvector": value(self.conn, version.format("vector")),
            "index": self.index and self._using(self.index),
            "index with filters": self.filtered and self._using(self.filtered),
            "settings": SESSION | {name: value(self.conn, f"SHOW {name}") for name in shown},
        }

    # -- table and index

    def _columns(self, rows: Array) -> list[tuple[str, Any]]:
        return [(self.type, rows)]

    def _definition(self) -> str:
        return f"embedding {self.type}({self.data.base.shape[1]})"

    def _copy(self, first: int, rows: Array, filters: Array) -> float:
        """COPY prepared bytes; the seconds that took."""
        ids = np.arange(first, first + len(rows), dtype=np.int32)
        numbers = [("int4", np.ascontiguousarray(column)) for column in filters.T]
        rows = np.ascontiguousarray(rows, np.float32)
        chunks = list(copy_bytes([("int4", ids), *self._columns(rows), *numbers]))
        start = time.perf_counter()
        with self.conn.cursor().copy(f"COPY {self.table} FROM STDIN (FORMAT BINARY)".encode()) as c:
            for chunk in chunks:
                c.write(chunk)
        return time.perf_counter() - start

    def fill(self) -> None:
        numbers = ", ".join(f"{name} int NOT NULL" for name in FILTERS)
        self.conn.execute(
            f"CREATE TABLE {self.table} (id int, {self._definition()}, {numbers})".encode()
        )
        for first in range(0, len(self.data.base), 10_000):
            part = slice(first, first + 10_000)
            self._copy(first, self.data.base[part], self.data.columns[part])
        self.conn.execute(f"VACUUM (FREEZE, ANALYZE) {self.table}".encode())
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self.conn.execute("CHECKPOINT")

    def _using(self, index: str) -> str:
        return index.format(
            type=self.type,
            dim=self.data.base.shape[1],
            lists=max(10, len(self.data.base) // 1000),
            many_lists=count_lists(self.data),
            filters=", ".join(FILTERS),
        )

    def _create_index(self, name: str, index: str) -> float:
        start = time.perf_counter()
        self.conn.execute(
            f"CREATE INDEX {name} ON {self.table} USING {self._using(index)}".encode()
        )
        seconds = time.perf_counter() - start
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self.conn.execute("CHECKPOINT")
        return seconds

    def build(self) -> float:
        return 0.0 if self.index is None else self._create_index(f"{self.table}_index", self.index)

    def build_filtered(self) -> float | None:
        if self.filtered is None:
            return None
        # in place of the other, which the planner may prefer where a filter keeps many rows
        self.conn.execute(f"DROP INDEX {self.table}_index".encode())
        return self._create_index(f"{self.table}_filtered", self.filtered)

    def drop_filtered(self) -> None:
        if self.filtered is not None:
            self.conn.execute(f"DROP INDEX {self.table}_filtered".encode())
            self.build()

    def size(self) -> dict[str, int]:
        sizes = {"table": value(self.conn, f"SELECT pg_table_size('{self.table}')")}
        for name in ("index", "filtered"):
            of = f"SELECT pg_relation_size(to_regclass('{self.table}_{name}'))"
            sizes[name] = value(self.conn, of) or 0
        return sizes

    def insert(self, first: int) -> float:
        rows = self.data.new[first : first + INSERTED]
        filters = np.zeros((len(rows), len(FILTERS)), np.int32)
        return self._copy(len(self.data.base) + first, rows, filters)

    # -- queries

    def settings(self, column: str | None) -> list[Setting]:
        return self.knobs(column)

    def set(self, column: str | None, setting: Setting) -> None:
        to = {name: setting[name] for name in setting if "." in name}
        for name in self.applied.keys() - to.keys():
            self.conn.execute(f"RESET {name}".encode())
        for name in to.items() - self.applied.items():
            self.conn.execute(f"SET {name[0]} = '{name[1]}'".encode())
        self.applied = to
        where = f" WHERE {column} = $2" if column else ""
        text = self.statement(where, setting)
        if (column, text) not in self.statements:
            self.statements[column, text] = self._prepare(column, text)
        self.current = self.statements[column, text]

    def _prepare(self, column: str | None, text: str) -> Statement:
        parameters = []
        for i, vector in enumerate(self.vectors):
            row = [vector]
            if column is not None:
                row.append(self.data.wanted(column, i).to_bytes(4, "big"))
            if self.codes:
                row.append(self.codes[i])
                text = text.replace("$code", f"${len(row)}::bqquery")
            parameters.append(row)
        name = f"{self.table} {len(self.statements)}"
        statement = Statement(self.conn, name, text, parameters)
        self._check_plan(name, len(parameters[0]), column)
        return statement

    def _check_plan(self, name: str, parameters: int, column: str | None) -> None:
        """The plan must use the index that is measured."""
        if self.index is None:
            return
        nulls = ", ".join(["NULL"] * parameters)  # a generic plan needs no values
        plan = str(value(self.conn, f'EXPLAIN (FORMAT JSON) EXECUTE "{name}" ({nulls})'))
        wanted = "filtered" if column and self.filtered else "index"
        if f"'{self.table}_{wanted}'" not in plan:
            raise RuntimeError(f"the plan does not use {self.table}_{wanted}: {plan}")

    def ask(self, query: int) -> list[int]:
        return self.current(query)


# -- pgvector --------------------------------------------------------------------------------


class Exact(Sql):
    """No index: all rows are compared; with a filter, those that a B-tree finds."""

    def title(self) -> str:
        return f"exact scan, {self.type}"

    def knobs(self, column: str | None) -> list[Setting]:
        return [{}]

    def build_filtered(self) -> float | None:
        seconds = 0.0
        for name in FILTERS:
            seconds += self._create_index(f"{self.table}_{name}", f"btree ({name})")
        self.conn.execute(f"ANALYZE {self.table}".encode())
        return seconds

    def drop_filtered(self) -> None:
        for name in FILTERS:
            self.conn.execute(f"DROP INDEX IF EXISTS {self.table}_{name}".encode())


class Hnsw(Sql):
    index = "hnsw (embedding {type}_cosine_ops) WITH (m = 16, ef_construction = 64)"
    on_other_servers = True

    def title(self) -> str:
        return f"pgvector HNSW, {self.type}"

    def knobs(self, column: str | None) -> list[Setting]:
        if column is None:
            return [{"hnsw.ef_search": ef} for ef in EF_SEARCH]
        return [{"hnsw.ef_search": ef, **more} for more in self._scans() for ef in FILTER_EF]

    def _scans(self) -> list[Setting]:
        """Iterative scans, within pgvector's limit and, so that it is not this that fails, beyond.

        Relaxed order is the faster one; the order of ten rows costs a client nothing.
        """
        relaxed = {"hnsw.iterative_scan": "relaxed_order"}
        far = {"hnsw.max_scan_tuples": len(self.data.base), "hnsw.scan_mem_multiplier": 100}
        return [relaxed, relaxed | far] if len(self.data.base) > 20_000 else [relaxed]


class HnswBit(Hnsw):
    """Sign bits in the index; the best of those in order by the vectors."""

    index = (
        "hnsw ((binary_quantize(embedding)::bit({dim})) bit_hamming_ops)"
        " WITH (m = 16, ef_construction = 64)"
    )
    on_other_servers = False

    def title(self) -> str:
        return "pgvector HNSW, bit, re-ranked"

    def knobs(self, column: str | None) -> list[Setting]:
        rerank = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100)
        scan = {"hnsw.iterative_scan": "relaxed_order"} if column else {}
        return [{"hnsw.ef_search": K * r, "rerank": r, **scan} for r in rerank]

    def statement(self, where: str, setting: Setting) -> str:
        bits = f"binary_quantize({{}})::bit({self.data.base.shape[1]})"
        return (
            f"SELECT id FROM (SELECT id, embedding FROM {self.table}{where}"
            f" ORDER BY {bits.format('embedding')} <~> {bits.format('$1::vector')}"
            f" LIMIT {K * setting['rerank']}) AS c ORDER BY embedding <=> $1 LIMIT {K}"
        )


class IvfFlat(Sql):
    """One list for a thousand rows, as pgvector's README has it."""

    index = "ivfflat (embedding {type}_cosine_ops) WITH (lists = {lists})"

    def title(self) -> str:
        return f"pgvector IVFFlat, {self.type}"

    def knobs(self, column: str | None) -> list[Setting]:
        lists = max(10, len(self.data.base) // 1000)
        probes = sorted({max(1, round(lists * 2 ** (-i / 2))) for i in range(14)})
        scan = {"ivfflat.iterative_scan": "relaxed_order"} if column else {}
        return [{"ivfflat.probes": n, **scan} for n in probes]


# -- bq --------------------------------------------------------------------------------------


class BqVectors(Sql):
    kind = "bq"
    extension = "bq_pgvector"
    on_other_servers = True
    index = "bq (embedding {type}_cosine_ops)"
    filtered = "bq (embedding {type}_cosine_ops, {filters})"

    def title(self) -> str:
        return f"bq, {self.type}"

    def knobs(self, column: str | None) -> list[Setting]:
        return [{"bq.recall": recall} for recall in RECALLS]


class BqCodes(Sql):
    """A column of codes beside halfvec, and two levels: the best codes in order by the vectors."""

    kind = "bq"
    extension = "bq_pgvector"
    index = "bq (code)"
    filtered = "bq (code, {filters})"
    k_of_codes = True

    def title(self) -> str:
        return "bq, codes in a column, re-ranked"

    def knobs(self, column: str | None) -> list[Setting]:
        pairs = itertools.product((2, 3, 5, 8), RECALLS[1::2])
        return [{"bq.recall": recall, "rerank": rerank} for rerank, recall in pairs]

    def _definition(self) -> str:
        dim = self.data.base.shape[1]
        return f"embedding {self.type}({dim}), code bqvec({dim})"

    def _columns(self, rows: Array) -> list[tuple[str, Any]]:
        return [(self.type, rows), ("bqvec", pybq.Quantizer(rows.shape[1]).encode(rows))]

    def statement(self, where: str, setting: Setting) -> str:
        return (
            f"SELECT id FROM (SELECT id, embedding FROM {self.table}{where} ORDER BY code <=> $code"
            f" LIMIT {K * setting['rerank']}) AS c ORDER BY embedding <=> $1 LIMIT {K}"
        )


# -- extensions of other servers --------------------------------------------------------------


def count_lists(data: Data) -> int:
    return round(4 * math.sqrt(len(data.base)))


class Vchordrq(Sql):
    """VectorChord, with the options that its documentation has for cosine distance.

    Of the numbers of lists that it recommends, one for a thousand rows or 4 sqrt(n) to 16 sqrt(n),
    4 sqrt(n) was the fastest of 116,033 rows at recall .95. `epsilon` says how many rows are
    compared exactly, 1.0 to 1.9.
    """

    kind = "other"
    extension = "vchord"
    on_other_servers = True
    index = (
        "vchordrq (embedding {type}_cosine_ops) WITH (options = $$\n"
        "residual_quantization = false\n[build.internal]\nlists = [{many_lists}]\n"
        "spherical_centroids = true\n$$)"
    )

    def title(self) -> str:
        return f"VectorChord vchordrq, {self.type}"

    def knobs(self, column: str | None) -> list[Setting]:
        lists = count_lists(self.data)
        probes = sorted({max(1, round(lists * 2 ** (-i / 2))) for i in range(14)})
        scan = {"vchordrq.prefilter": "on"} if column else {}
        return [
            {"vchordrq.probes": n, "vchordrq.epsilon": epsilon, **scan}
            for n in probes
            for epsilon in (1.0, 1.4, 1.9)
        ]


class DiskAnn(Sql):
    """pgvectorscale, with its defaults."""

    kind = "other"
    extension = "vectorscale"
    on_other_servers = True
    index = "diskann (embedding {type}_cosine_ops)"

    def title(self) -> str:
        return f"pgvectorscale diskann, {self.type}"

    def knobs(self, column: str | None) -> list[Setting]:
        return [
            {"diskann.query_search_list_size": n, "diskann.query_rescore": rescore}
            for n, rescore in ((20, 20), (40, 30), (70, 50), (100, 50), (150, 100), (300, 200))
        ]


# class -> types of pgvector; in the order of the table
PEERS: dict[type[Sql], tuple[str, ...]] = {
    BqVectors: ("vector", "halfvec"),
    BqCodes: ("halfvec",),
    Hnsw: ("vector", "halfvec"),
    HnswBit: ("vector",),
    IvfFlat: ("vector",),
    Exact: ("vector", "halfvec"),
    Vchordrq: ("vector", "halfvec"),
    DiskAnn: ("vector",),
}


def sql_peers(dsn: str, schema: str, server: str = "") -> list[Sql]:
    """Those of a server; of the embedded one, all but what only other servers have."""
    return [
        peer(dsn, schema, server, type_)
        for peer, types in PEERS.items()
        for type_ in types
        if (peer.on_other_servers if server else peer.kind != "other")
    ]


def drop_schema(dsn: str, schema: str) -> None:
    """Remove all tables of a run; psycopg.Error if that fails."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET client_min_messages = warning")
        conn.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
