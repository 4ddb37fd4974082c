"""The few exceptions that a caller may want to tell apart."""

from typing import Any


class ExtensionMissingError(RuntimeError):
    """The database lacks the extension bq, so that its types cannot be registered."""


class BuildError(RuntimeError):
    """The extension could not be built for the embedded server."""


class ServerError(RuntimeError):
    """The embedded server could not be started."""


class TableError(RuntimeError):
    """A table is not there, was not made by pybq, or is not as the caller expected."""


class RowError(ValueError):
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


class LoadError(RuntimeError):
    """A batch of a load that was not written; the exception that stopped it is its `__cause__`.

    Attributes
    ----------
    source : str
        Name of the source.
    first, last : int
        Rows of the source that the batch has, counted from 0.
    written : int
        Rows that the load has written in other batches, which stay.
    """

    def __init__(self, source: str, first: int, last: int, written: int, reason: str) -> None:
        super().__init__(
            f"rows {first} to {last} of {source} were not written: {reason}"
            f" ({written} rows of other batches were; resume continues)"
        )
        self.source = source
        self.first = first
        self.last = last
        self.written = written
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return LoadError, (self.source, self.first, self.last, self.written, self.reason)
