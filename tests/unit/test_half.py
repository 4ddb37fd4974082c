"""Widening of float16 numbers: all of them, at any place and length."""

import corelib
import numpy as np
import pytest
from corelib import address

ALL = np.arange(65536, dtype=np.uint32).astype(np.uint16)


def widen(halves, n):
    """Widen n numbers at an address, of any alignment; what lies behind must stay."""
    out = np.full(n + 1, np.float32(7))
    corelib.load().bq_widen_half(halves, address(out), n)
    assert out[n] == 7
    return out[:n]


def assert_same_numbers(found, halves):
    """Equal bits, but for which NaN it is: instructions make signalling ones quiet."""
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_every_number_equals_numpy():
    """By the instructions for eight at once, where this CPU has them."""
    assert_same_numbers(widen(address(ALL), ALL.size), ALL)


def test_every_number_alone_equals_numpy():
    """Seven at a time: never by the instructions for eight."""
    parts = [ALL[i : i + 7] for i in range(0, ALL.size, 7)]
    found = np.concatenate([widen(address(part), part.size) for part in parts])
    assert_same_numbers(found, ALL)


@pytest.mark.parametrize("n", range(41))
def test_lengths_and_offsets(n):
    """Nothing behind the end is read or written, wherever the numbers begin."""
    rng = np.random.default_rng(n)
    halves = rng.standard_normal(n).astype(np.float16).view(np.uint16)
    for offset in range(0, 34, 2):
        memory = corelib.Guarded(4096)
        # offset 0 ends at an unmapped page; the view is of bytes, at any address
        place = memory.at_end(halves, offset)
        assert_same_numbers(widen(place.ctypes.data, n), halves)
    place = corelib.Guarded(4096).at_start(halves)
    assert_same_numbers(widen(place.ctypes.data, n), halves)
