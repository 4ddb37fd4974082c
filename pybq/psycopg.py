"""psycopg 3 adapters: Code <-> bqvec, Query <-> bqquery, text and binary."""

from __future__ import annotations

from typing import Any

import numpy as np
from psycopg import AsyncConnection, BaseConnection, Connection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo

from pybq._codes.vector import Code, Query
from pybq.errors import ExtensionMissingError


def register_bq(connection: Connection[Any]) -> None:
    """Adapt Code and Query on a connection, in queries, results and COPY.

    Parameters
    ----------
    connection : psycopg.Connection
        To a database that has the extension. `pgvector.psycopg.register_vector` may be called on
        it as well, in any order.

    Raises
    ------
    ExtensionMissingError
        If the database lacks the extension.

    Examples
    --------
    >>> import psycopg, pybq
    >>> from pybq.psycopg import register_bq
    >>> with pybq.serve() as server, psycopg.connect(server.dsn) as conn:
    ...     register_bq(conn)
    ...     code = conn.execute("SELECT bq_encode(ARRAY[3, 4], 0)").fetchone()[0]
    ...     conn.execute("SELECT hamming_distance(%s, %s)", (code, code)).fetchone()
    (0.0,)
    """
    _register(connection, TypeInfo.fetch(connection, "bqvec"), Code)
    _register(connection, TypeInfo.fetch(connection, "bqquery"), Query)


async def register_bq_async(connection: AsyncConnection[Any]) -> None:
    """The same for an asynchronous connection; see `register_bq`."""
    _register(connection, await TypeInfo.fetch(connection, "bqvec"), Code)
    _register(connection, await TypeInfo.fetch(connection, "bqquery"), Query)


def _register(
    connection: BaseConnection[Any], info: TypeInfo | None, value: type[Code] | type[Query]
) -> None:
    if info is None:
        name = "bqvec" if value is Code else "bqquery"
        raise ExtensionMissingError(f'type "{name}" not found; run CREATE EXTENSION bq')
    info.register(connection)
    # Last registered, first tried: binary, which is exact by nature and needs no parsing.
    for dumper in (_TextDumper, _BinaryDumper):
        oid_dumper = type(dumper.__name__, (dumper,), {"oid": info.oid, "value": value})
        connection.adapters.register_dumper(value, oid_dumper)
    for loader in (_TextLoader, _BinaryLoader):
        value_loader = type(loader.__name__, (loader,), {"value": value})
        connection.adapters.register_loader(info.oid, value_loader)


class _TextDumper(Dumper):
    format = Format.TEXT
    value: type[Code] | type[Query]

    def dump(self, obj: Any) -> Buffer:
        return self.as_value(obj).to_text().encode()

    def as_value(self, obj: Any) -> Code | Query:
        """COPY with set_types() hands over whatever is in the row: take arrays, too."""
        if isinstance(obj, np.ndarray):
            return self.value.from_numpy(obj)
        if not isinstance(obj, self.value):
            raise TypeError(f"expected {self.value.__name__} or ndarray, got {type(obj).__name__}")
        return obj


class _BinaryDumper(_TextDumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        return self.as_value(obj).to_binary()


class _TextLoader(Loader):
    format = Format.TEXT
    value: type[Code] | type[Query]

    def load(self, data: Buffer) -> Code | Query:
        return self.value.from_text(bytes(data).decode())


class _BinaryLoader(_TextLoader):
    format = Format.BINARY

    def load(self, data: Buffer) -> Code | Query:
        return self.value.from_binary(bytes(data))
