"""pybq: vector search in PostgreSQL on 2-bit codes; driver for the extension bq."""

from importlib.metadata import version

from pybq._core import kernels, set_kernel, simd
from pybq.embedded import Server, serve
from pybq.errors import BuildError, ExtensionMissingError, ServerError
from pybq.quantizer import Quantizer
from pybq.vector import Code, Query

__version__ = version("pybq")

__all__ = [
    "BuildError",
    "Code",
    "ExtensionMissingError",
    "Quantizer",
    "Query",
    "Server",
    "ServerError",
    "kernels",
    "serve",
    "set_kernel",
    "simd",
]
