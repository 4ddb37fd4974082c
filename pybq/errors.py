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
