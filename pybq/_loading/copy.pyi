# Types of copy.pyx.
from collections.abc import Iterator, Sequence
from typing import Any

CHUNK_NBYTES: int
HEADER: bytes
TRAILER: bytes
KINDS: dict[str, tuple[int, str | None]]

def encode_rows(
    columns: Sequence[tuple[str, Any] | tuple[str, Any, Any]],
    chunk_nbytes: int = ...,
) -> Iterator[bytes]:
    """Whole arrays as rows of COPY ... FROM STDIN WITH (FORMAT binary).

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
        Whole rows. What goes before the first and behind the last: HEADER, TRAILER.

    Raises
    ------
    TypeError, ValueError
        If a column does not fit its kind, with column and row; what concerns single objects
        of text, bytea and uuid is raised when their chunk is made.
    """
