"""pybq: vector search in PostgreSQL on 2-bit codes; driver for the extension bq.

What is public: the names that ``dir(pybq)`` lists, and the modules `pybq.psycopg`,
`pybq.sqlalchemy`, `pybq.alembic`, `pybq.spark`, `pybq.dask` and `pybq.embedded`, one for each
library they meet. What begins with an underscore may change at any time.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from pybq._choice.probe import probe
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose
from pybq._codes.core import kernels, set_kernel, simd
from pybq._codes.quantizer import Quantizer
from pybq._codes.vector import Code, Query
from pybq.embedded import Server, serve
from pybq.errors import (
    BuildError,
    Error,
    ExtensionMissingError,
    LoadError,
    RowError,
    ServerError,
    TableError,
    needed_by,
)

if TYPE_CHECKING:
    from pybq._tables.adoption import Adoption, adopt
    from pybq._tables.table import Arrays, AsyncTable, Effort, Hit, Row, Status, Table

__version__ = version("pybq")

__all__ = [
    "Adoption",
    "Arrays",
    "AsyncTable",
    "BuildError",
    "Code",
    "Decision",
    "Effort",
    "Error",
    "ExtensionMissingError",
    "Hit",
    "LoadError",
    "Quantizer",
    "Query",
    "Row",
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
    "probe",
    "serve",
    "set_kernel",
    "simd",
]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # which knows these names, and that there are no others

    def __getattr__(name):
        # Only now, because it loads psycopg: not everyone who encodes has a database.
        if name in __all__:
            module = "adoption" if name in ("Adoption", "adopt") else "table"
            with needed_by(f"pybq.{name}"):
                return getattr(import_module(f"pybq._tables.{module}"), name)
        raise AttributeError(f"module 'pybq' has no attribute {name!r}")
