"""Code and Query: one value of the SQL types bqvec and bqquery."""

from __future__ import annotations

import operator
import struct
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pybq._codes import core
from pybq._codes.arrays import as_numbers

_Buffer = bytes | bytearray | memoryview


def _format_float4(value: float) -> str:
    """Shortest decimal that reads back as the same float32, laid out as float4 in SQL."""
    number = np.float32(value)
    if number == 0:
        return "-0" if np.signbit(number) else "0"
    scientific = np.format_float_scientific(number, trim="-", exp_digits=2)
    exponent = int(scientific.partition("e")[2])
    # PostgreSQL changes to an exponent where printf's %g would: src/common/f2s.c
    if -4 <= exponent < 6:
        return np.format_float_positional(number, trim="-")
    return scientific


def _split_text(text: str, kind: str) -> tuple[int, str]:
    """The transform number in front of the first colon, and the rest."""
    head, colon, rest = text.strip().partition(":")
    if not colon or not head.isascii() or not head.isdigit():
        raise ValueError(f"expected a {kind} like {_EXAMPLES[kind]}, got {text[:40]!r}")
    # int() refuses thousands of digits in words of its own
    transform = int(head) if len(head.lstrip("0")) < 10 else core.MAX_TRANSFORM + 1
    if transform > core.MAX_TRANSFORM:
        raise ValueError(f"expected transform between 0 and {core.MAX_TRANSFORM}, got {head[:40]}")
    return transform, rest


_EXAMPLES = {"bqvec": "0:1.25:0312", "bqquery": "0:[0.5,-1.25]"}


class Code:
    """One packed vector: a value of the SQL type `bqvec`. Immutable, hashable, picklable.

    Made by the class methods; `Code.from_numpy(quantizer.encode(vector))` for a new vector.

    Examples
    --------
    >>> code = Code.from_text("0:1.25:0312")
    >>> code.dim, code.transform, code.norm, code.levels
    (4, 0, 1.25, array([0, 3, 1, 2], dtype=uint8))
    >>> Code.from_binary(code.to_binary()) == code
    True
    """

    __slots__ = ("_payload", "_header")

    def __init__(self, payload: _Buffer) -> None:
        self._payload = bytes(payload)
        self._header = core.check_payload(self._payload)

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._header[0]

    @property
    def transform(self) -> int:
        """Number of the rotation, 0 for the original axes."""
        return self._header[1]

    @property
    def norm(self) -> float:
        """Length of the vector, a float32."""
        return self._header[2]

    @property
    def levels(self) -> NDArray[np.uint8]:
        """Levels of the dimensions, 0 to 3, from strong minus to strong plus."""
        return core.levels(self._payload)

    @classmethod
    def from_text(cls, text: str) -> Code:
        """Read `transform:norm:levels`, as SQL writes it.

        Raises
        ------
        ValueError
            If it is not the text of a code.
        """
        transform, rest = _split_text(text, "bqvec")
        norm, colon, digits = rest.partition(":")
        if not colon or not digits.isascii():
            raise ValueError(f"expected a bqvec like {_EXAMPLES['bqvec']}, got {text[:40]!r}")
        with np.errstate(over="ignore"):
            number = float(np.float32(float(norm)))
        levels = np.frombuffer(digits.encode(), np.uint8) - np.uint8(ord("0"))
        return cls(core.from_levels(transform, number, levels))

    def to_text(self) -> str:
        """`transform:norm:levels`, e.g. `0:1.25:0312`."""
        digits = (self.levels + np.uint8(ord("0"))).tobytes().decode()
        return f"{self.transform}:{_format_float4(self.norm)}:{digits}"

    @classmethod
    def from_binary(cls, data: _Buffer) -> Code:
        """Read the payload of extension/core/bqcode.h, as `bqvec_send` writes it.

        Raises
        ------
        ValueError
            If the bytes are not a code.
        """
        return cls(data)

    def to_binary(self) -> bytes:
        """The payload: big-endian header, sign plane, magnitude plane."""
        return self._payload

    @classmethod
    def from_numpy(cls, array: NDArray[np.uint8]) -> Code:
        """Take one row of what `Quantizer.encode` returns, uint8 of shape (nbytes,)."""
        if array.dtype != np.uint8:
            raise TypeError(f"expected a code of dtype uint8, got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"expected a code of shape (nbytes,), got {array.shape}")
        return cls(array.tobytes())

    def to_numpy(self) -> NDArray[np.uint8]:
        """The payload as uint8 of shape (nbytes,), read-only."""
        return np.frombuffer(self._payload, np.uint8)

    def __eq__(self, other: object) -> bool:
        return self._payload == other._payload if isinstance(other, Code) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._payload)

    def __repr__(self) -> str:
        return f"Code({_shorten(self.to_text())!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Code, (self._payload,)


class Query:
    """A prepared float query: a value of the SQL type `bqquery`. Immutable, hashable, picklable.

    `Quantizer.query(vector)` makes one; the constructor takes values that are rotated already.

    Parameters
    ----------
    values : array_like of float32, shape (dim,)
        Finite values, after the rotation.
    transform : int
        Number of that rotation, 0 for the original axes.

    Raises
    ------
    ValueError
        If a value is not finite, or dim or transform is out of range.

    Examples
    --------
    >>> query = Query([0.5, -1.25])
    >>> query.to_text()
    '0:[0.5,-1.25]'
    >>> Query.from_binary(query.to_binary()) == query
    True
    """

    __slots__ = ("_transform", "_values")

    def __init__(self, values: ArrayLike, transform: int = 0) -> None:
        array = as_numbers(values, "values")
        if array.ndim != 1:
            raise ValueError(f"expected values of shape (dim,), got {array.shape}")
        self._transform = operator.index(transform)
        if not 0 <= self._transform <= core.MAX_TRANSFORM:
            raise ValueError(
                f"expected transform between 0 and {core.MAX_TRANSFORM}, got {transform}"
            )
        with np.errstate(over="ignore"):
            array = np.array(array, np.float32)
        checked = np.empty((1, len(array)), np.float32)
        core.prepare(array[None], checked)
        self._values: NDArray[np.float32] = checked[0]
        self._values.flags.writeable = False

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self._values)

    @property
    def transform(self) -> int:
        """Number of the rotation, 0 for the original axes."""
        return self._transform

    @property
    def values(self) -> NDArray[np.float32]:
        """The rotated query, float32 of shape (dim,), read-only."""
        return self._values

    @classmethod
    def from_text(cls, text: str) -> Query:
        """Read `transform:[v1,v2,...]`, as SQL writes it."""
        transform, rest = _split_text(text, "bqquery")
        if not (rest.startswith("[") and rest.endswith("]")):
            raise ValueError(f"expected a bqquery like {_EXAMPLES['bqquery']}, got {text[:40]!r}")
        return cls([float(value) for value in rest[1:-1].split(",")], transform)

    def to_text(self) -> str:
        """`transform:[v1,v2,...]`, each value the shortest that reads back as the same float32."""
        return f"{self._transform}:[{','.join(map(_format_float4, self._values))}]"

    @classmethod
    def from_binary(cls, data: _Buffer) -> Query:
        """Read the wire form: dim and transform as uint16, then dim float32, all big endian.

        Raises
        ------
        ValueError
            If the length does not match, or a value is not finite.
        """
        data = bytes(data)
        if len(data) < 4:
            raise ValueError(f"expected a bqquery of at least 4 bytes, got {len(data)}")
        dim, transform = struct.unpack_from("!HH", data)
        if len(data) != 4 + 4 * dim:
            raise ValueError(f"expected {4 + 4 * dim} bytes for {dim} dimensions, got {len(data)}")
        return cls(np.frombuffer(data, ">f4", offset=4), transform)

    def to_binary(self) -> bytes:
        """The wire form: dim and transform as uint16, then dim float32, all big endian."""
        header = struct.pack("!HH", self.dim, self._transform)
        values: bytes = self._values.astype(">f4").tobytes()
        return header + values

    @classmethod
    def from_numpy(cls, array: NDArray[Any], transform: int = 0) -> Query:
        """Take rotated values of shape (dim,), as `Quantizer.rotate` returns them."""
        return cls(array, transform)

    def to_numpy(self) -> NDArray[np.float32]:
        """The same as `values`."""
        return self._values

    def __eq__(self, other: object) -> bool:
        return self.to_binary() == other.to_binary() if isinstance(other, Query) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_binary())

    def __repr__(self) -> str:
        return f"Query({_shorten(self.to_text())!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Query, (self._values, self._transform)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
