"""bq on columns of pgvector, through psycopg."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg import sql

from ...filter import Filter, FilterOp
from ..api import VectorDB
from .config import BqIndexConfig

log = logging.getLogger(__name__)

TYPES = {"vector": Vector, "halfvec": HalfVector}


class Bq(VectorDB):
    """One table, and one index on its vectors and on what cases filter by.

    What the harness copies to other processes holds no connection: `init` makes one in each.
    """

    name = "bq"
    thread_safe = False
    supported_filter_types: list[FilterOp] = [
        FilterOp.NonFilter,
        FilterOp.NumGE,
        FilterOp.StrEqual,
    ]

    def __init__(
        self,
        dim: int,
        db_config: dict,
        db_case_config: BqIndexConfig,
        collection_name: str = "vectordb_bench_bq",
        drop_old: bool = False,
        with_scalar_labels: bool = False,
        **kwargs: Any,
    ):
        self.dim = dim
        self.db_config = db_config
        self.case_config = db_case_config
        self.with_scalar_labels = with_scalar_labels
        self.value = TYPES[db_case_config.column_type]
        self.table = sql.Identifier(collection_name)
        self.index = sql.Identifier(f"{collection_name}_index")
        self.where: sql.Composable = sql.SQL("")
        self.conn: psycopg.Connection | None = None

        with psycopg.connect(**self.db_config, autocommit=True) as conn:
            conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE")
            if drop_old:
                conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self.table))
                self._create_table(conn)

    def _create_table(self, conn: psycopg.Connection) -> None:
        label = sql.SQL(", label text" if self.with_scalar_labels else "")
        kind = sql.SQL(f"{self.case_config.column_type}({self.dim})")
        conn.execute(
            sql.SQL("CREATE TABLE {} (id bigint PRIMARY KEY, embedding {}{})").format(
                self.table, kind, label
            )
        )

    @contextmanager
    def init(self) -> Iterator[None]:
        with psycopg.connect(**self.db_config, autocommit=True) as conn:
            register_vector(conn)
            self._set(conn, self.case_config.search_settings())
            self.conn = conn
            self.statement = self._compose()
            try:
                yield
            finally:
                self.conn = None

    @staticmethod
    def _set(conn: psycopg.Connection, settings: dict) -> None:
        for name, value in settings.items():
            conn.execute("SELECT set_config(%s, %s, false)", (name, value))

    def _connected(self) -> psycopg.Connection:
        if self.conn is None:
            msg = "expected to be called within init()"
            raise RuntimeError(msg)
        return self.conn

    def insert_embeddings(
        self,
        embeddings: list[list[float]],
        metadata: list[int],
        labels_data: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[int, Exception | None]:
        types = ["bigint", self.case_config.column_type]
        columns = [metadata, [self.value(x) for x in embeddings]]
        if self.with_scalar_labels:
            types.append("text")
            columns.append(labels_data)
        conn = self._connected()
        try:
            statement = sql.SQL("COPY {} FROM STDIN WITH (FORMAT binary)").format(self.table)
            with conn.cursor().copy(statement) as copy:
                copy.set_types(types)
                for row in zip(*columns, strict=True):
                    copy.write_row((int(row[0]), *row[1:]))
        except psycopg.Error as error:
            log.warning("insert failed: %s", error)
            return 0, error
        return len(metadata), None

    def optimize(self, data_size: int | None = None) -> None:
        """Make the index.  Cases filter by id or label: both are columns of it."""
        columns = ["id", *(["label"] if self.with_scalar_labels else [])]
        conn = self._connected()
        self._set(conn, self.case_config.build_settings())
        conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(self.index))
        conn.execute(
            sql.SQL("CREATE INDEX {} ON {} USING bq (embedding {}, {})").format(
                self.index,
                self.table,
                sql.Identifier(self.case_config.index_param()["operator_class"]),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
            )
        )
        conn.execute(sql.SQL("VACUUM ANALYZE {}").format(self.table))

    def prepare_filter(self, filters: Filter) -> None:
        if filters.type == FilterOp.NumGE:
            self.where = sql.SQL("WHERE id >= {}").format(sql.Literal(filters.int_value))
        elif filters.type == FilterOp.StrEqual:
            self.where = sql.SQL("WHERE label = {}").format(sql.Literal(filters.label_value))
        else:
            self.where = sql.SQL("")
        self.statement = self._compose()

    def _compose(self) -> sql.Composed:
        return sql.SQL("SELECT id FROM {} {} ORDER BY embedding {} %s LIMIT %s").format(
            self.table, self.where, sql.SQL(self.case_config.search_param()["operator"])
        )

    def search_embedding(self, query: list[float], k: int = 100, **kwargs: Any) -> list[int]:
        found = self._connected().execute(
            self.statement, (self.value(np.asarray(query)), k), prepare=True, binary=True
        )
        return [id for (id,) in found]
