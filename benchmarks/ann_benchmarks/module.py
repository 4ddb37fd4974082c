"""bq for ann-benchmarks: an index on pgvector's columns, asked for a recall.

The server is that of PGHOST and its kind if PGHOST is set, else that of the container, which is
started.  Queries of a batch go to `bq_search`, in as many parts as there are CPUs.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector

from ..base.module import BaseANN

OPERATORS = {"angular": "<=>", "euclidean": "<->"}
CLASSES = {"angular": "cosine_ops", "euclidean": "l2_ops"}
TYPES = {"vector": Vector, "halfvec": HalfVector}


class Bq(BaseANN):
    def __init__(self, metric, method_param):
        if metric not in OPERATORS:
            raise ValueError(f"expected a metric of {sorted(OPERATORS)}, got {metric!r}")
        self._metric = metric
        self._type = method_param["type"]
        self._value = TYPES[self._type]
        self._recall = None
        self._conns = []
        # the query is a parameter of its own type: no cast, and one plan for all
        self._query = f"SELECT id FROM items ORDER BY embedding {OPERATORS[metric]} %s LIMIT %s"

    def _connect(self):
        conn = psycopg.connect(autocommit=True)
        conn.execute("SET jit = off")
        register_vector(conn)
        self._conns.append(conn)
        return conn

    def fit(self, X):
        if "PGHOST" not in os.environ:
            subprocess.run(["service", "postgresql", "start"], check=True)
        with psycopg.connect(autocommit=True) as conn:  # types are looked up after this
            conn.execute("CREATE EXTENSION IF NOT EXISTS bq_pgvector CASCADE")
        conn = self._connect()
        conn.execute("DROP TABLE IF EXISTS items")
        conn.execute(f"CREATE TABLE items (id integer, embedding {self._type}({X.shape[1]}))")
        # in the row, as far as a page has room: a query fetches few vectors, but these at once
        conn.execute("ALTER TABLE items ALTER COLUMN embedding SET STORAGE PLAIN")
        with conn.cursor().copy("COPY items FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["integer", self._type])
            for i, x in enumerate(X):
                copy.write_row((i, self._value(x)))
        conn.execute(
            "CREATE INDEX items_embedding ON items"
            f" USING bq (embedding {self._type}_{CLASSES[self._metric]})"
        )
        conn.execute("VACUUM ANALYZE items")

    def set_query_arguments(self, recall):
        self._recall = recall
        for conn in self._conns:
            conn.execute(f"SET bq.recall = {recall:f}")

    def query(self, v, n):
        found = self._conns[0].execute(self._query, (self._value(v), n), prepare=True, binary=True)
        return [id for (id,) in found]

    def prepare_batch_query(self, X, n):
        while len(self._conns) < min(os.cpu_count() or 1, len(X)):
            self._connect()
        self.set_query_arguments(self._recall)
        parts = np.array_split(X, len(self._conns))
        self._batch = [([self._value(x) for x in part], n) for part in parts]

    def run_batch_query(self):
        with ThreadPoolExecutor(len(self._conns)) as pool:
            self._found = list(pool.map(self._search, self._conns, self._batch))

    @staticmethod
    def _search(conn, batch):
        return conn.execute(
            "SELECT s.query, id FROM bq_search('items_embedding', %s, %s) AS s"
            " JOIN items ON items.ctid = s.tid ORDER BY s.query, s.distance",
            batch,
            binary=True,
        ).fetchall()

    def get_batch_results(self):
        results = []
        for (queries, _), found in zip(self._batch, self._found, strict=True):
            ids = [[] for _ in queries]
            for query, id in found:
                ids[query - 1].append(id)
            results += ids
        return results

    def get_memory_usage(self):
        """The index, in kilobytes; nothing before it is there."""
        if not self._conns:
            return 0
        found = self._conns[0].execute("SELECT pg_relation_size('items_embedding')")
        return found.fetchone()[0] / 1024

    def done(self):
        for conn in self._conns:
            conn.close()
        self._conns = []

    def __str__(self):
        return f"Bq(type={self._type}, recall={self._recall})"
