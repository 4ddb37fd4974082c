"""Codes, distances, rotation and tables in NumPy: slow, obvious, the judge of all others.

Written from the comments of extension/core/*.h, not from its code.  Where the order of float
operations is part of the contract it is followed here, so that equality can be exact: NumPy
rounds each elementary operation once, as the core does when compiled without contraction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_DIM = 16000
MAX_NORM = float(np.finfo(np.float32).max) / 128
HEADER_NBYTES = 8
LANES = 32
BLOCK = 32
ROUNDS = 4

THRESHOLD = 0.9816
WEAK, STRONG = 0.4528, 1.510
LEVEL_VALUES = np.array([-STRONG, -WEAK, WEAK, STRONG])


# --- the packed code (bqcode.h) ---


def plane_nbytes(dim: int) -> int:
    return (dim + 7) // 8


def pack_planes(signs: Array, magnitudes: Array) -> Array:
    """Bits, shape (..., dim), to planes of uint8, shape (..., 2 * plane_nbytes)."""
    planes = [np.packbits(bits, axis=-1, bitorder="little") for bits in (signs, magnitudes)]
    return np.concatenate(planes, axis=-1)


def unpack_planes(planes: Array, dim: int) -> tuple[Array, Array]:
    """Sign and magnitude bits as int, shape (..., dim)."""
    nbytes = plane_nbytes(dim)
    sign, magnitude = planes[..., :nbytes], planes[..., nbytes:]
    return (
        np.unpackbits(sign, axis=-1, bitorder="little", count=dim).astype(int),
        np.unpackbits(magnitude, axis=-1, bitorder="little", count=dim).astype(int),
    )


def levels(planes: Array, dim: int) -> Array:
    """0 strong minus, 1 weak minus, 2 weak plus, 3 strong plus."""
    sign, magnitude = unpack_planes(planes, dim)
    return np.where(sign == 1, 2 + magnitude, 1 - magnitude)


def planes_of_levels(levels: Array) -> Array:
    return pack_planes(levels >= 2, (levels == 0) | (levels == 3))


def payload(planes: Array, dim: int, transform: int, norm: float) -> bytes:
    header = np.array([dim, transform], ">u2").tobytes() + np.array([norm], ">f4").tobytes()
    return header + planes.tobytes()


# --- code against code (bqhamming.h) ---


def hamming(a: Array, b: Array, dim: int) -> int:
    """Hamming distance of the thermometer codes 000, 001, 011, 111."""
    thermometer = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
    return int((thermometer[levels(a, dim)] != thermometer[levels(b, dim)]).sum())


def hamming_sign(a: Array, b: Array, dim: int) -> int:
    return int((unpack_planes(a, dim)[0] != unpack_planes(b, dim)[0]).sum())


def hamming_quiver(a: Array, b: Array, dim: int) -> int:
    (sign_a, strong_a), (sign_b, strong_b) = unpack_planes(a, dim), unpack_planes(b, dim)
    return int(((sign_a != sign_b) * (1 + strong_a) * (1 + strong_b)).sum())


# --- sums in the fixed order (bqkernel.h) ---


def lane_sum(terms: Array) -> Array:
    """Sum over the last axis: term i to lane i % 32, lanes added pairwise."""
    n = terms.shape[-1]
    padded = np.zeros((*terms.shape[:-1], -(-n // LANES) * LANES), terms.dtype)
    padded[..., :n] = terms
    lanes = np.zeros((*terms.shape[:-1], LANES), terms.dtype)
    for start in range(0, n, LANES):
        lanes = lanes + padded[..., start : start + LANES]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def sum_squares(x: Array) -> Array:
    return lane_sum(x.astype(np.float64) ** 2)


def sum_absolute(x: Array) -> Array:
    return lane_sum(np.abs(x.astype(np.float64)))


def dot(q: Array, planes: Array) -> tuple[Array, Array]:
    """Sums of +-q in float32, over all dimensions and over the strong ones."""
    dim = q.shape[-1]
    sign, magnitude = unpack_planes(planes, dim)
    terms = np.where(sign == 1, q, -q)
    return lane_sum(terms), lane_sum(np.where(magnitude == 1, terms, np.float32(0)))


# --- the rotation (bqrotate.h) ---


def random_word(seed: int, i: int) -> int:
    """Word i of splitmix64 in counter mode."""
    mask = 2**64 - 1
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def flips(dim: int, transform: int) -> Array:
    """Whether a round negates a coordinate: bool, shape (ROUNDS, dim)."""
    seed = random_word(int.from_bytes(b"bqvec", "big"), transform)
    words = [
        [random_word(seed, (k << 32) + i) for i in range(-(-dim // 64))] for k in range(ROUNDS)
    ]
    bits = np.unpackbits(np.array(words, "<u8").view(np.uint8), axis=1, bitorder="little")
    return bits[:, :dim].astype(bool)


def hadamard(x: Array) -> Array:
    """Unnormalised Walsh-Hadamard transform of the last axis, steps 1, 2, 4, ..."""
    n = x.shape[-1]
    step = 1
    while step < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * step), 2, step)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        step *= 2
    return x


def rotate(x: Array, transform: int) -> Array:
    """Rotate the last axis, in the precision of x (float32 gives the core's bits)."""
    dim = x.shape[-1]
    n = 1 << (dim.bit_length() - 1)
    half = dim // 2
    factor = x.dtype.type(np.float32(1 / np.sqrt(float(n))))
    sqrt_half = x.dtype.type(np.float32(0.70710678))
    for k, flip in enumerate(flips(dim, transform)):
        x = np.where(flip, -x, x)
        block = slice(0, n) if k % 2 == 0 else slice(dim - n, dim)
        x[..., block] = hadamard(x[..., block]) * factor
        if n != dim and k % 2 == 1:
            a, b = x[..., :half].copy(), x[..., dim - half :].copy()
            x[..., :half] = (a + b) * sqrt_half
            x[..., dim - half :] = (a - b) * sqrt_half
    return x


# --- vectors and codes (bqencode.h) ---


def encode(x: Array, transform: int = 0, cut: str = "rms") -> tuple[Array, np.float32]:
    """Planes and norm of one float32 vector that has passed the checks."""
    dim = x.shape[-1]
    squares = sum_squares(x)
    norm = np.float32(np.sqrt(squares))
    if squares == 0:
        return np.zeros(2 * plane_nbytes(dim), np.uint8), norm
    threshold = THRESHOLD * np.sqrt(squares / dim)
    if transform:
        if squares < dim * 2.0**-100:
            x = x * np.float32(2.0**100)
            threshold *= 2.0**100
        x = rotate(x, transform)
    if cut == "mean":
        threshold = sum_absolute(x) / dim
    return pack_planes(x > 0, np.abs(x) > np.float32(threshold)), norm


def decoded_norm(planes: Array, dim: int) -> float:
    return float(np.sqrt((LEVEL_VALUES[levels(planes, dim)] ** 2).sum()))


def decode(planes: Array, dim: int, norm: float) -> Array:
    """The vector a code stands for, on the axes it was encoded on, float64."""
    values = LEVEL_VALUES[levels(planes, dim)]
    return np.asarray(values * (norm / np.linalg.norm(values)) if norm > 0 else 0 * values)


# --- tables (bqlut.h) ---


def nibbles(planes: Array, dim: int) -> Array:
    """One nibble for each two dimensions."""
    padding = np.zeros(dim % 2, int)
    sign, magnitude = (np.append(bits, padding) for bits in unpack_planes(planes, dim))
    return np.asarray(sign[0::2] + 2 * sign[1::2] + 4 * magnitude[0::2] + 8 * magnitude[1::2])


def make_block(codes: list[Array], dim: int) -> Array:
    """Up to 32 codes, as planes, to a block of uint8, shape (rows, 16)."""
    block = np.zeros(((dim + 1) // 2, 16), np.uint8)
    for c, planes in enumerate(codes):
        block[:, c % 16] |= (nibbles(planes, dim) << (4 * (c // 16))).astype(np.uint8)
    return block


def block_sums(table: Array, block: Array) -> Array:
    """Sum over rows of table[row, nibble], for each of the 32 codes."""
    both = np.concatenate([block & 15, block >> 4], axis=1)
    return np.asarray(np.take_along_axis(table.astype(int), both.astype(int), axis=1).sum(axis=0))


def nibble_levels() -> Array:
    """Levels of the two dimensions of each nibble, shape (2, 16)."""
    n = np.arange(16)
    sign = np.stack([n & 1, n >> 1 & 1])
    magnitude = np.stack([n >> 2 & 1, n >> 3 & 1])
    return np.where(sign == 1, 2 + magnitude, 1 - magnitude)


def hamming_table(planes: Array, dim: int) -> Array:
    """Level differences between a code and every nibble; padding counts nothing."""
    own = np.append(levels(planes, dim), np.zeros(dim % 2, int)).reshape(-1, 2)
    difference = np.abs(own[:, :, None] - nibble_levels()[None])
    if dim % 2:
        difference[-1, 1] = 0
    return np.asarray(difference.sum(axis=1), np.uint8)
