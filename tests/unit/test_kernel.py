"""Every kernel x every length x odd offsets x an unmapped page right behind: equal to reference.

A read or write past the end of an array ends the process, which no test can overlook.
"""

import ctypes
import itertools

import corelib
import numpy as np
import pytest
import reference
from corelib import Guarded, address

KERNELS = corelib.available_kernels()
LENGTHS = range(0, 201)  # bytes of a plane: past three registers of 64
DIMS = [*range(1, 201), 384, 385]  # floats: past three times 32 lanes
OFFSETS = [0, 1, 2, 3, 5, 8, 13, 31]  # bytes, so floats are misaligned too
CODE_DISTANCES = ["hamming", "hamming_sign", "hamming_quiver"]

pytestmark = pytest.mark.parametrize("name", KERNELS)


@pytest.fixture(scope="module")
def memory():
    """One guarded buffer for each argument."""
    return [Guarded(1 << 16) for _ in range(3)]


def test_best_kernel_is_in_use(name):
    library = corelib.load()
    assert corelib.kernel(name).name.decode() == name
    with corelib.use_kernel(name), corelib.use_kernel("auto"):
        in_use = ctypes.POINTER(corelib.Kernel).in_dll(library, "bq_kernel").contents.name
        assert in_use.decode() == KERNELS[0]
    assert not library.bq_kernel_select(b"mmx")


def places(memory, *arrays):
    """Addresses of copies of the arrays at each offset from an unmapped page, before or behind."""
    for offset in OFFSETS:
        yield [address(m.at_end(a, offset)) for m, a in zip(memory, arrays, strict=False)]
    yield [address(m.at_start(a)) for m, a in zip(memory, arrays, strict=False)]


@pytest.mark.parametrize("function", CODE_DISTANCES)
def test_code_distance_equals_reference(name, function, memory, rng):
    for nbytes in LENGTHS:
        a, b = rng.integers(0, 256, (2, 2 * nbytes), dtype=np.uint8)
        expected = getattr(reference, function)(a, b, 8 * nbytes)
        for pa, pb in places(memory, a, b):
            assert getattr(corelib.kernel(name), function)(pa, pb, nbytes) == expected, nbytes


@pytest.mark.parametrize("function", CODE_DISTANCES)
def test_code_distance_of_all_level_pairs(name, function):
    """Every pair of levels at every position of a register and beyond."""
    distance = {
        "hamming": lambda a, b: abs(a - b),
        "hamming_sign": lambda a, b: int((a >= 2) != (b >= 2)),
        "hamming_quiver": lambda a, b: (
            ((a >= 2) != (b >= 2)) * (1 + (a in (0, 3))) * (1 + (b in (0, 3)))
        ),
    }[function]
    for dim in (8, 128, 520):
        for a, b in itertools.product(range(4), repeat=2):
            codes = reference.planes_of_levels(np.array([[a] * dim, [b] * dim]))
            found = getattr(corelib.kernel(name), function)(
                address(codes[0]), address(codes[1]), codes.shape[1] // 2
            )
            assert found == dim * distance(a, b), (a, b)
    base = np.full(520, 1)
    for i, level in itertools.product(range(520), range(4)):
        other = base.copy()
        other[i] = level
        a, b = reference.planes_of_levels(base), reference.planes_of_levels(other)
        found = getattr(corelib.kernel(name), function)(address(a), address(b), 65)
        assert found == distance(1, level), (i, level)


def test_popcount_equals_reference(name, memory, rng):
    for nbytes in LENGTHS:
        a = rng.integers(0, 256, nbytes, dtype=np.uint8)
        for (pa,) in places(memory[:1], a):
            assert corelib.kernel(name).popcount(pa, nbytes) == np.unpackbits(a).sum(), nbytes


def random_floats(rng, n):
    """Values of all sizes whose sums depend on their order, some of them zero or denormal."""
    x = rng.standard_normal(n) * np.exp2(rng.integers(-12, 12, n))
    special = rng.choice([0.0, -0.0, 1e-40, -1e-45, 1e-38], n)
    return np.where(rng.random(n) < 0.1, special, x).astype(np.float32)


def random_planes(rng, dim):
    return reference.planes_of_levels(rng.integers(0, 4, dim))


def test_dot_equals_reference(name, memory, rng):
    every, strong = ctypes.c_float(), ctypes.c_float()
    for dim in DIMS:
        q, planes = random_floats(rng, dim), random_planes(rng, dim)
        expected = np.array(reference.dot(q, planes), np.float32)
        for pq, pp in places(memory, q, planes):
            corelib.kernel(name).dot(pq, pp, dim, every, strong)
            found = np.array([every.value, strong.value], np.float32)
            assert found.tobytes() == expected.tobytes(), dim


@pytest.mark.parametrize("function", ["sum_squares", "sum_absolute"])
def test_sum_equals_reference(name, function, memory, rng):
    for dim in DIMS:
        x = random_floats(rng, dim)
        expected = getattr(reference, function)(x)
        for (px,) in places(memory[:1], x):
            assert getattr(corelib.kernel(name), function)(px, dim) == expected, dim


def test_pack_equals_reference(name, memory, rng):
    for dim in DIMS:
        x = random_floats(rng, dim)
        threshold = np.float32(abs(x[0]))  # equal to a value: the comparison must be strict
        expected = reference.pack_planes(x > 0, np.abs(x) > threshold)
        for px, pp in places(memory, x, np.full(expected.size, 0xFF, np.uint8)):
            corelib.kernel(name).pack(px, dim, threshold, pp)
            assert ctypes.string_at(pp, expected.size) == expected.tobytes(), dim


def test_unpack_equals_reference(name, memory, rng):
    weak, strong = np.float32(0.25), np.float32(1.75)
    values = np.array([-strong, -weak, weak, strong])
    for dim in DIMS:
        planes = random_planes(rng, dim)
        expected = values[reference.levels(planes, dim)]
        for pp, px in places(memory, planes, np.zeros(dim, np.float32)):
            corelib.kernel(name).unpack(pp, dim, weak, strong, px)
            assert ctypes.string_at(px, 4 * dim) == expected.tobytes(), dim


def random_flips(rng, n):
    """Words for the kernel, with one to spare, and the same as bits."""
    words = rng.integers(0, 2**64, n // 64 + 2, dtype=np.uint64)
    return words, np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)


def test_flip_equals_reference(name, memory, rng):
    words, bits = random_flips(rng, 512)
    for dim in DIMS:
        x = random_floats(rng, dim)
        for first in (0, 1, 7, 8, 63, 100):
            expected = np.where(bits[first : first + dim], -x, x).astype(np.float32)
            for px, py in places(memory, x, np.zeros(dim, np.float32)):
                corelib.kernel(name).flip(py, px, dim, address(words), first)
                assert ctypes.string_at(py, 4 * dim) == expected.tobytes(), (dim, first)
                corelib.kernel(name).flip(px, px, dim, address(words), first)
                assert ctypes.string_at(px, 4 * dim) == expected.tobytes(), (dim, first)


def test_scale_equals_reference(name, memory, rng):
    factor = np.float32(0.3)
    for dim in DIMS:
        x = random_floats(rng, dim)
        for px, py in places(memory, x, np.zeros(dim, np.float32)):
            corelib.kernel(name).scale(py, px, dim, factor)
            assert ctypes.string_at(py, 4 * dim) == (x * factor).tobytes(), dim


def test_mix_equals_reference(name, memory, rng):
    sqrt_half = np.float32(0.70710678)
    for dim in DIMS:
        a, b = random_floats(rng, dim), random_floats(rng, dim)
        for pa, pb in places(memory, a, b):
            corelib.kernel(name).mix(pa, pb, dim)
            assert ctypes.string_at(pa, 4 * dim) == ((a + b) * sqrt_half).tobytes(), dim
            assert ctypes.string_at(pb, 4 * dim) == ((a - b) * sqrt_half).tobytes(), dim


def test_hadamard_equals_reference(name, memory, rng):
    factor = np.float32(0.4)
    words, bits = random_flips(rng, 8192 + 100)
    for n in (2**k for k in range(14)):
        x = random_floats(rng, n)
        for first in (None, 0, 5, 64, 100):
            flipped = x if first is None else np.where(bits[first : first + n], -x, x)
            expected = (reference.hadamard(flipped.astype(np.float32)) * factor).tobytes()
            flips = None if first is None else address(words)
            for px, py in places(memory, x, np.zeros(n, np.float32)):
                corelib.kernel(name).hadamard(py, px, n, flips, first or 0, factor)
                assert ctypes.string_at(py, 4 * n) == expected, (n, first)
                corelib.kernel(name).hadamard(px, px, n, flips, first or 0, factor)
                assert ctypes.string_at(px, 4 * n) == expected, (n, first)


def test_lut_block_equals_reference(name, memory, rng):
    for rows in LENGTHS:
        table, block = rng.integers(0, 256, (2, rows, 16), dtype=np.uint8)
        expected = reference.block_sums(table, block).astype(np.uint16)
        for pt, pb in places(memory, table, block):
            out = np.zeros(32, np.uint16)
            corelib.kernel(name).lut_block(pt, pb, rows, address(out))
            assert np.array_equal(out, expected), rows


def test_scale_sums_equals_reference(name, memory, rng):
    scale, bias = np.float32(0.37), np.float32(1234.5)
    for _ in range(20):
        sums, factor = rng.integers(0, 65536, (2, 32), dtype=np.uint16)
        expected = (scale * sums.astype(np.float32) - bias) * factor.astype(np.float32)
        for ps, pf, po in places(memory, sums, factor, np.zeros(32, np.float32)):
            corelib.kernel(name).scale_sums(ps, scale, bias, pf, po)
            assert ctypes.string_at(po, 128) == expected.tobytes()


def test_find_sums_equals_reference(name, memory, rng):
    scale, bias = np.float32(0.37), np.float32(1234.5)
    for _ in range(20):
        sums, factor = rng.integers(0, 65536, (2, 32), dtype=np.uint16)
        values = (scale * sums.astype(np.float32) - bias) * factor.astype(np.float32)
        # a value itself is not above the limit
        for limit in (values.min() - 1, *values[:4], values.max()):
            expected = sum(1 << int(c) for c in np.flatnonzero(values <= limit))
            for ps, pf in places(memory, sums, factor):
                found = corelib.kernel(name).find_sums(ps, scale, bias, pf, limit)
                assert found == expected
