"""float16 numbers to float32 and back, by every kernel: all values, at any place and length."""

from collections.abc import Iterator

import corelib
import numpy as np
import pytest
from corelib import address

ALL = np.arange(65536, dtype=np.uint32).astype(np.uint16)


@pytest.fixture(params=corelib.available_kernels(), autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with corelib.use_kernel(request.param):
        yield request.param


def widen(halves, n):
    """Widen n numbers at an address, of any alignment; what lies behind must stay."""
    out = np.full(n + 1, np.float32(7))
    corelib.load().bq_widen_half(halves, address(out), n)
    assert out[n] == 7
    return out[:n]


def narrow(floats, n):
    """Round n numbers at an address; what lies behind must stay."""
    out = np.full(n + 1, 7, np.uint16)
    corelib.load().bq_narrow_half(floats, address(out), n)
    assert out[n] == 7
    return out[:n]


def in_parts(function, values):
    """Seven at a time: never by the instructions for eight."""
    parts = [values[i : i + 7] for i in range(0, values.size, 7)]
    return np.concatenate([function(address(part), part.size) for part in parts])


def assert_widened(found, halves):
    """Equal bits to NumPy's; NaN is a quiet one, whatever it was."""
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32).view(np.uint32)
    nan = (halves & 0x7FFF) > 0x7C00
    expected[nan] |= 0x400000
    assert np.array_equal(found.view(np.uint32), expected)


def assert_narrowed(found, floats):
    """Equal bits to NumPy's; NaN is a quiet one with the first bits of what it was."""
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(np.float16).view(np.uint16)
    nan = np.isnan(floats)
    bits = floats.view(np.uint32)[nan]
    expected[nan] = (bits >> 16 & 0x8000) | 0x7E00 | (bits >> 13 & 0x3FF)
    assert np.array_equal(found, expected)


def floats_of_all_kinds():
    """All float16 values, half way between them, and the numbers next to both; others at random."""
    exact = np.sort(ALL[(ALL & 0x7FFF) <= 0x7BFF].view(np.float16).astype(np.float32))
    edges = np.concatenate([exact, (exact[1:] + exact[:-1]) / 2, [65520, -65520]])
    edges = edges.astype(np.float32)
    rng = np.random.default_rng(7)
    others = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    infinite = np.array([np.inf], np.float32)
    return np.concatenate(
        [edges, np.nextafter(edges, infinite), np.nextafter(edges, -infinite), others]
        + [ALL.astype(np.uint32).view(np.float32), (ALL.astype(np.uint32) << 16).view(np.float32)]
    )


FLOATS = floats_of_all_kinds()


def test_every_number_is_widened_as_by_numpy():
    """By the instructions for eight at once, where the kernel has them."""
    assert_widened(widen(address(ALL), ALL.size), ALL)
    assert_widened(in_parts(widen, ALL), ALL)


def test_numbers_of_all_kinds_are_rounded_as_by_numpy():
    assert np.isnan(FLOATS).any() and np.isinf(FLOATS).any()
    assert_narrowed(narrow(address(FLOATS), FLOATS.size), FLOATS)
    assert_narrowed(in_parts(narrow, FLOATS), FLOATS)


@pytest.mark.parametrize("n", range(41))
def test_lengths_and_offsets(n):
    """Nothing behind the end is read or written, wherever the numbers begin."""
    floats = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    halves = floats.astype(np.float16).view(np.uint16)
    for function, values, check in (
        (widen, halves, assert_widened),
        (narrow, floats, assert_narrowed),
    ):
        for offset in range(0, 17 * values.itemsize, values.itemsize):
            # offset 0 ends at an unmapped page; the view is of bytes, at any address
            place = corelib.Guarded(4096).at_end(values, offset)
            check(function(place.ctypes.data, n), values)
        place = corelib.Guarded(4096).at_start(values)
        check(function(place.ctypes.data, n), values)
