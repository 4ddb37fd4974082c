# Types of _copy.pyx.
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

CHUNK_NBYTES: int
HEADER: bytes
TRAILER: bytes
KINDS: dict[str, tuple[int, str | None]]

def to_half(vectors: NDArray[Any]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Vectors (n, dim) rounded to float16 as numpy does, and what they then are in float32.

    Several times as fast as numpy where the CPU has instructions for it. Too large is infinite.
    """

def encode_rows(
    columns: Sequence[tuple[str, Any] | tuple[str, Any, Any]],
    chunk_nbytes: int = ...,
) -> Iterator[bytes]:
    """Whole arrays as the bytes of COPY ... FROM STDIN WITH (FORMAT binary).

    Parameters
    ----------
    columns : sequence of (kind, values) or (kind, values, nulls)
        In the order of the COPY statement. Kinds, and what their values are:

        - int2, int4, int8, float4, float8, bool: array of shape (n,), range checked
        - bqvec: uint8 (n, nbytes), as Quantizer.encode returns them
        - vector, halfvec, "float4[]": numbers (n, dim)
        - text: str; uuid: uuid.UUID or 16 bytes; bytea: bytes. Sequences; None is NULL.
          The kind bytea also writes any other type whose wire form the bytes are.

        `nulls` is a bool array of shape (n,), True where the field is NULL.
    chunk_nbytes : int
        About the size of a chunk; a longer row makes a longer chunk.

    Yields
    ------
    bytes
        The header, then whole rows, then the trailer.

    Raises
    ------
    TypeError, ValueError
        If a column does not fit its kind, with column and row; what concerns single objects
        of text, bytea and uuid is raised when their chunk is made.
    """

def decode_rows(data: Buffer, kinds: Sequence[str]) -> list[Any]:
    """The bytes of COPY ... TO STDOUT WITH (FORMAT binary) as one array, or list, per column.

    The data is not trusted: lengths, headers, and codes are checked.

    Raises
    ------
    ValueError
        If the data is damaged or does not fit `kinds`, or a field is NULL that goes into an
        array; with row and column.
    """
