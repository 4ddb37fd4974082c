"""Vectors to codes and back: the same bytes from every kernel, equal to the reference."""

from pathlib import Path

import corelib
import numpy as np
import pytest
import reference
from corelib import address

KERNELS = corelib.available_kernels()
SMALL_DIMS = list(range(1, 131))
LARGE_DIMS = [384, 512, 768, 1000, 1024, 1536, 3072, 16000]
MAX_NORM = np.float32(reference.MAX_NORM)
GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden.npz"


def sample_vectors(dim, rng):
    """Named float32 vectors of every awkward kind."""
    gaussian = rng.standard_normal(dim)
    one_hot = np.zeros(dim)
    one_hot[rng.integers(dim)] = -1
    return {
        name: np.asarray(x, np.float32)
        for name, x in {
            "gaussian": gaussian,
            "skewed": rng.lognormal(0, 2, dim),
            "half zeros": np.where(rng.random(dim) < 0.5, gaussian, 0.0) + one_hot,
            "minus zeros": np.where(rng.random(dim) < 0.5, gaussian, -0.0) + one_hot,
            "one-hot": one_hot,
            "constant": np.full(dim, 0.25),
            "constant minus": np.full(dim, -3e-5),
            "denormal": rng.integers(-9, 10, dim) * 1e-44 + one_hot * 1e-43,
            "small": gaussian * 1e-37,
            "below the scale": gaussian * 1e-16,
            "huge": gaussian / np.linalg.norm(gaussian) * 0.999 * reference.MAX_NORM,
            "huge one-hot": one_hot * (0.999 * reference.MAX_NORM),
            "wide range": gaussian * 10.0 ** rng.integers(-30, 30, dim),
        }.items()
    }


@pytest.mark.parametrize("transform", [0, 1, 65535])
def test_every_kernel_encodes_as_reference(transform, rng):
    for dim in SMALL_DIMS + LARGE_DIMS:
        for kind, x in sample_vectors(dim, rng).items():
            for cut in ("rms", "mean"):
                planes, norm = reference.encode(x, transform, cut)
                for name in KERNELS:
                    with corelib.use_kernel(name):
                        found = corelib.encode(x, transform, cut)
                    where = (dim, kind, cut, name)
                    assert found[0] == "ok", where
                    assert found[1].tobytes() == planes.tobytes(), where
                    assert found[2].tobytes() == norm.tobytes(), where


@pytest.mark.parametrize("name", KERNELS)
def test_golden_codes(name):
    """Codes written by an earlier version: what is stored must stay readable."""
    checked = 0
    with np.load(GOLDEN) as golden, corelib.use_kernel(name):
        for key in (key for key in golden if key.startswith("payload")):
            _, dim, transform, cut = key.split("_")
            x = golden[f"vector_{dim}"].astype(np.float32)
            status, planes, norm = corelib.encode(x, int(transform), cut)
            assert status == "ok"
            found = reference.payload(planes, int(dim), int(transform), norm)
            assert found == golden[key].tobytes(), key
            checked += 1
    assert checked == 22 * 3 * 2


@pytest.mark.parametrize("transform", [0, 7])
def test_rows_are_payloads_of_single_vectors(transform, rng):
    library = corelib.load()
    for dim, stride in [(5, 5), (33, 40), (384, 384)]:
        x = rng.standard_normal((9, stride)).astype(np.float32)
        nbytes = 8 + 2 * reference.plane_nbytes(dim)
        out = np.zeros((9, nbytes), np.uint8)
        bad, scratch = corelib.c_size_t(99), np.empty(dim, np.float32)
        arguments = (dim, 0, corelib.rotation(dim, transform), address(scratch), address(out), bad)
        assert library.bq_encode_rows(address(x), 9, stride, *arguments) == 0
        for row, found in zip(x, out, strict=True):
            planes, norm = reference.encode(row[:dim].copy(), transform)
            assert found.tobytes() == reference.payload(planes, dim, transform, norm)
        x[6, 2] = np.nan
        status = library.bq_encode_rows(address(x), 9, stride, *arguments)
        assert corelib.STATUS[status] == "not_finite"
        assert bad.value == 6


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_rejected_anywhere(name, value):
    with corelib.use_kernel(name):
        for dim in (1, 2, 31, 33, 100, 384):
            for i in range(dim):
                x = np.ones(dim, np.float32)
                x[i] = value
                assert corelib.encode(x)[0] == "not_finite", (dim, i)
                assert corelib.encode(x, 1)[0] == "not_finite", (dim, i)


@pytest.mark.parametrize("transform", [0, 1])
def test_norm_range(transform):
    below = np.array([np.nextafter(MAX_NORM, np.float32(0))])
    above = np.array([np.nextafter(MAX_NORM, np.float32(np.inf))])
    assert corelib.encode(below, transform)[0] == "ok"
    assert corelib.encode(above, transform)[0] == "norm_range"
    largest = np.full(16000, np.finfo(np.float32).max, np.float32)
    assert corelib.encode(largest, transform)[0] == "norm_range"
    # a length that rounds to the limit gives a norm that is not over it
    near = np.array([1, np.sqrt(2 * 3e-8)], np.float32) * below[0]
    status, _, norm = corelib.encode(near, transform)
    assert status == "ok"
    assert norm == MAX_NORM
    # many coordinates that are in range one by one
    assert corelib.encode(np.full(3, below[0]), transform)[0] == "norm_range"


@pytest.mark.parametrize("transform", [0, 1])
def test_zero_vector_has_the_zero_code(transform):
    for zero in (0.0, -0.0):
        for dim in (1, 8, 100, 384):
            status, planes, norm = corelib.encode(np.full(dim, zero, np.float32), transform)
            assert status == "ok"
            assert not planes.any()
            assert norm.tobytes() == np.float32(0).tobytes()
            decoded = corelib.decode(planes, dim, norm, transform)
            assert decoded.tobytes() == np.zeros(dim, np.float32).tobytes()


@pytest.mark.parametrize("name", KERNELS)
def test_decode_equals_reference(name, rng):
    with corelib.use_kernel(name):
        for dim in SMALL_DIMS + LARGE_DIMS:
            x = rng.standard_normal(dim).astype(np.float32)
            _, planes, norm = corelib.encode(x)
            expected = reference.decode(planes, dim, float(norm))
            np.testing.assert_allclose(corelib.decode(planes, dim, norm), expected, rtol=3e-7)
            assert corelib.load().bq_decoded_norm(address(planes), dim) == pytest.approx(
                reference.decoded_norm(planes, dim), rel=1e-14
            )


def test_decoded_rotated_code_is_near_its_vector(rng):
    """Back on the original axes, and of the vector's length."""
    for dim in (100, 384, 768, 1000):
        x = rng.standard_normal(dim).astype(np.float32)
        _, planes, norm = corelib.encode(x, 3)
        decoded = corelib.decode(planes, dim, norm, 3)
        assert np.linalg.norm(decoded) == pytest.approx(float(norm), rel=1e-5)
        assert decoded @ x / norm**2 > 0.9


@pytest.mark.parametrize("transform", [0, 2])
def test_query_distances_equal_those_of_the_decoded_code(transform, rng):
    library = corelib.load()
    for dim in (1, 7, 64, 100, 384, 1000):
        x, y = (rng.lognormal(0, 1, (2, 1)) * rng.standard_normal((2, dim))).astype(np.float32)
        _, planes, norm = corelib.encode(x, transform)
        q, q_norm = np.empty(dim, np.float32), corelib.c_float()
        status = library.bq_prepare_query(
            address(y), dim, corelib.rotation(dim, transform), address(q), q_norm
        )
        assert status == 0
        assert q_norm.value == pytest.approx(np.linalg.norm(y))
        decoded = reference.decode(planes, dim, float(norm))
        exact, scale = q.astype(float) @ decoded, float(norm) * q_norm.value
        code = (address(planes), dim, norm)
        assert library.bq_inner_product(address(q), *code) == pytest.approx(exact, abs=1e-5 * scale)
        assert library.bq_cosine_distance(address(q), q_norm, *code) == pytest.approx(
            1 - exact / scale, abs=1e-5
        )
        assert library.bq_l2_distance(address(q), q_norm, *code) == pytest.approx(
            np.linalg.norm(q.astype(float) - decoded), abs=1e-2 * np.sqrt(scale)
        )


def test_query_distances_are_the_same_on_every_kernel(rng):
    library = corelib.load()
    for dim in SMALL_DIMS + LARGE_DIMS:
        x, q = rng.standard_normal((2, dim)).astype(np.float32)
        _, planes, norm = corelib.encode(x)
        found = set()
        for name in KERNELS:
            with corelib.use_kernel(name):
                found.add(library.bq_cosine_distance(address(q), 1.5, address(planes), dim, norm))
        assert len(found) == 1, dim


def test_distances_to_zero_are_defined():
    library = corelib.load()
    q, zero = np.ones(10, np.float32), np.zeros(4, np.uint8)
    assert library.bq_cosine_distance(address(q), np.sqrt(10), address(zero), 10, 0) == 1
    assert library.bq_inner_product(address(q), address(zero), 10, 0) == 0
    assert library.bq_l2_distance(address(q), 3, address(zero), 10, 0) == 3
    _, planes, norm = corelib.encode(q)
    origin = np.zeros(10, np.float32)
    assert library.bq_cosine_distance(address(origin), 0, address(planes), 10, norm) == 1
    assert library.bq_l2_distance(address(origin), 0, address(planes), 10, norm) == norm
