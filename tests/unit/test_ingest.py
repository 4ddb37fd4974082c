"""What ingest does to vectors before the server is involved."""

from __future__ import annotations

import numpy as np
import pytest

from pybq._codes.arrays import to_half
from pybq._loading.ingest import SAMPLE_ROWS, take_sample


def assert_rounded_as_numpy_does(vectors: np.ndarray) -> None:
    half, exact = to_half(vectors)
    with np.errstate(over="ignore"):
        expected = vectors.astype(np.float16)
    np.testing.assert_array_equal(half.view(np.uint16), expected.view(np.uint16))
    np.testing.assert_array_equal(exact, expected.astype(np.float32))


def test_to_half_rounds_all_kinds_of_floats() -> None:
    # every 4099th float32: normal, denormal, infinite, of both signs
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    assert_rounded_as_numpy_does(bits[~np.isnan(bits)][None])


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 384])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_to_half_takes_any_shape_and_type(rng: np.random.Generator, rows: int, dim: int) -> None:
    vectors = rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-8, 6, (rows, dim))
    for given in (vectors, vectors.astype(np.float32), np.asfortranarray(vectors, np.float32)):
        assert_rounded_as_numpy_does(given)
    assert np.isnan(to_half(np.full((1, dim), np.nan, np.float32))[0]).all()


def test_sample_is_spread_evenly_and_finite() -> None:
    n = 3 * SAMPLE_ROWS
    vectors = np.arange(n, dtype=np.float32)[:, None].repeat(2, axis=1)
    vectors[0] = np.nan
    vectors[-1] = np.inf
    sample = take_sample(vectors)[:, 0]
    assert len(sample) == SAMPLE_ROWS - 2
    assert set(np.diff(sample)) <= {2, 3, 4}
    assert sample[0] <= 4 and sample[-1] >= n - 5
    assert len(take_sample(vectors[1:5])) == 4
