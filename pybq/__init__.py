"""pybq: vector search in PostgreSQL on 2-bit codes; driver for the extension bq."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose
from pybq._codes.core import kernels, set_kernel, simd
from pybq._codes.quantizer import Quantizer
from pybq._codes.vector import Code, Query
from pybq.embedded import Server, serve
from pybq.errors import (
    BuildError,
    ExtensionMissingError,
    LoadError,
    RowError,
    ServerError,
    TableError,
)

if TYPE_CHECKING:
    from pybq._tables.adoption import Adoption, adopt
    from pybq._tables.table import Arrays, AsyncTable, Effort, Hit, Status, Table

__version__ = version("pybq")

__all__ = [
    "Adoption",
    "Arrays",
    "AsyncTable",
    "BuildError",
    "Code",
    "Decision",
    "Effort",
    "ExtensionMissingError",
    "Hit",
    "LoadError",
    "Quantizer",
    "Query",
    "RowError",
    "Server",
    "ServerError",
    "Statistics",
    "Status",
    "Table",
    "TableError",
    "adopt",
    "choose",
    "kernels",
    "serve",
    "set_kernel",
    "simd",
]


def __getattr__(name: str) -> Any:
    # Only now, because it loads psycopg: not everyone who encodes has a database.
    if name in ("Arrays", "AsyncTable", "Effort", "Hit", "Status", "Table"):
        from pybq._tables import table

        return getattr(table, name)
    if name in ("Adoption", "adopt"):
        from pybq._tables import adoption

        return getattr(adoption, name)
    raise AttributeError(f"module 'pybq' has no attribute {name!r}")
