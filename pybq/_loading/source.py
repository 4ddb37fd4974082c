"""A source of vectors, and its batches; `sources` opens those that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bytes of vectors that a batch of a file holds which cannot be mapped into memory.
BATCH_NBYTES = 16 << 20

# Names under which a file may keep its vectors and its primary keys.
VECTOR_NAMES = ("embedding", "embeddings", "vector", "vectors")
ID_NAMES = ("id", "ids")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a file, as `Table.ingest` takes them.

    Attributes
    ----------
    ids : sequence or ndarray, shape (n,), or None
        Primary keys; None if the file has none.
    vectors : ndarray, shape (n, dim)
        Perhaps mapped from the file, and then any number of them.
    columns : mapping of str to sequence
        Further columns, n values each; None is NULL.
    """

    ids: Sequence[Any] | NDArray[Any] | None
    vectors: NDArray[Any]
    columns: Mapping[str, Sequence[Any] | NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Vectors to be read in batches, of which nothing has been read but what is said here.

    Attributes
    ----------
    name : str
        The file, or what kind of object it is.
    rows : int or None
        Number of vectors; None if only reading tells.
    dim : int
        Number of dimensions.
    has_ids : bool
        Whether it has primary keys.
    id_type : str
        SQL type that fits the primary keys; bigint if there are none.
    columns : tuple of str
        Further columns. Whether their values can be stored is for the table's columns to say.
    column_types : dict of str to str
        Those of them for which a new table could have a column: name, and the SQL type that fits.
    skipped : tuple of str
        Arrays of another length; not read.
    fingerprint : str
        Changes if the source changes, or what is read of it: its shape, the names of vectors and
        keys and, of a file, its size and time.
    """

    name: str
    rows: int | None
    dim: int
    has_ids: bool
    id_type: str
    columns: tuple[str, ...]
    column_types: Mapping[str, str]
    skipped: tuple[str, ...]
    fingerprint: str
    _read: Callable[[frozenset[str], int | None], Iterator[Batch]]
    _sample: Callable[[int], NDArray[Any]]

    def batches(self, columns: Sequence[str] = (), rows: int | None = None) -> Iterator[Batch]:
        """Read from the beginning, with the further columns named.

        `rows` bounds the batches, which are the same each time; left out, what is mapped into
        memory comes in one.
        """
        return self._read(frozenset(columns), rows)

    def sample(self, rows: int) -> NDArray[np.float32]:
        """Return up to so many vectors spread evenly over all, or over what was looked at.

        What can be read once only is looked at from its beginning. Rows that are not finite are
        passed over.
        """
        with np.errstate(over="ignore"):
            sample = np.asarray(self._sample(rows), np.float32)
        return sample[np.isfinite(sample).all(axis=1)]


def choose_column(
    source: str, names: Mapping[str, Any], candidates: list[str], wanted: str | None, what: str
) -> str:
    """The column asked for; else one of the usual names; else the only one."""
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{source}: no column {wanted!r} among {', '.join(names)}")
        return wanted
    usual = [name for name in candidates if name in VECTOR_NAMES]
    for found in (usual, candidates):
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{source}: expected one column of {what}, got {', '.join(candidates) or 'none'}"
        "; say which with vector_column"
    )


def choose_id(source: str, names: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is not None and wanted not in names:
        raise ValueError(f"{source}: no column {wanted!r} among {', '.join(names)}")
    return wanted or next((name for name in ID_NAMES if name in names), None)


def unlike(name: str, names: Iterable[str]) -> str:
    """The name, with as many underscores as it takes to differ from all others."""
    return name if name not in names else unlike(f"{name}_", names)
