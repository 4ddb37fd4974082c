"""The few exceptions that a caller may want to tell apart, under one base; what to install.

Arguments that are wrong by themselves are a plain ValueError or TypeError, and what the server
says comes as psycopg raises it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What only some need -> the extra that brings it along.
EXTRAS = {
    "alembic": "sqlalchemy",
    "dask": "dask",
    "django": "django",
    "filelock": "embedded",
    "haystack": "haystack",
    "langchain_core": "langchain",
    "libpq": "binary",
    "llama_index": "llama-index",
    "llama_index.core": "llama-index",
    "platformdirs": "embedded",
    "pyspark": "spark",
    "rich": "cli",
    "sqlalchemy": "sqlalchemy",
    "typer": "cli",
}


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Say what to install if an import in here fails for want of something in EXTRAS."""
    try:
        yield
    except ImportError as error:
        missing = error.name or ""
        if "no pq wrapper" in str(error):  # as psycopg says it, which itself is there
            missing = "libpq"
        elif missing not in EXTRAS:
            missing = missing.split(".")[0]
        if missing not in EXTRAS:
            raise
        hint = f'run pip install "pybq[{EXTRAS[missing]}]"'
        raise ModuleNotFoundError(f"{what} needs {missing}; {hint}", name=missing) from error


class Error(Exception):
    """Base of the exceptions that are pybq's own."""


class ExtensionMissingError(Error, RuntimeError):
    """The database lacks the extension bq, so that its types cannot be registered."""


class BuildError(Error, RuntimeError):
    """The extension could not be built for the embedded server."""


class ServerError(Error, RuntimeError):
    """The embedded server could not be started."""


class TableError(Error, RuntimeError):
    """A table is not there, was not made by pybq, or is not as the caller expected."""


class RowError(Error, ValueError):
    """A row that cannot be written; all others of the same call are not written either.

    Attributes
    ----------
    row : int
        Its index in the arrays given.
    id : Any
        Its primary key.
    reason : str
        What is wrong with it.
    """

    def __init__(self, row: int, id: Any, reason: str) -> None:
        super().__init__(f"row {row} (id {id!r}): {reason}")
        self.row = row
        self.id = id
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.row, self.id, self.reason)


class LoadError(Error, RuntimeError):
    """Rows of a load that were not written; the exception that stopped it is its `__cause__`.

    Attributes
    ----------
    source : str
        Name of the source.
    first : int
        First row of the source, counted from 0, of the batch that could not be written, or that
        the source failed to give.
    last : int or None
        Last row of that batch; None if the source failed.
    written : int
        Rows that the load has written in other batches, which stay.
    """

    def __init__(
        self, source: str, first: int, last: int | None, written: int, reason: str
    ) -> None:
        rows = f"rows {first} to {last}" if last is not None else f"rows from {first} on"
        super().__init__(
            f"{rows} of {source} were not written: {reason}"
            f" ({written} rows of other batches were; resume continues)"
        )
        self.source = source
        self.first = first
        self.last = last
        self.written = written
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return LoadError, (self.source, self.first, self.last, self.written, self.reason)
