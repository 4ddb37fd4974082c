"""Theory: each closed form against a simulation with the real code."""

import numpy as np
import pytest

from pybq import Quantizer
from pybq._choice import theory


def decoded(x, transform=0):
    quantizer = Quantizer(x.shape[1], transform)
    return quantizer.decode(quantizer.encode(x)).astype(np.float64)


def correlation(truth, estimate):
    """Mean correlation within a query, over the rows of both."""
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(truth, estimate, strict=True)])


def simulated(sigma, estimate, transform=0, rows=2000, queries=200):
    """Fidelity of estimate(query, row) on independent Gaussian coordinates."""
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((rows, len(sigma))) * sigma).astype(np.float32)
    q = (rng.standard_normal((queries, len(sigma))) * sigma).astype(np.float32)
    return correlation(q.astype(np.float64) @ x.T.astype(np.float64), estimate(q, x))


def profiles(dim=1024):
    rng = np.random.default_rng(5)
    z = rng.standard_normal(dim)
    return {
        "even": np.ones(dim),
        "log-normal 0.3": np.exp(0.3 * z),
        "log-normal 0.8": np.exp(0.8 * z),
        "power law": np.arange(1, dim + 1) ** -0.3,
        "half of them 0": np.where(np.arange(dim) % 2, 1.0, 0.0),
    }


@pytest.fixture(params=profiles())
def sigma(request):
    return profiles()[request.param]


def test_gaussian_code_equals_simulation():
    rng = np.random.default_rng(1)
    dim = 200
    mean, sigma = rng.standard_normal(dim), rng.uniform(0.2, 2, dim)
    x = (mean + sigma * rng.standard_normal((20_000, dim))).astype(np.float32)
    f = decoded(x)
    rms = float(np.sqrt(np.mean(mean**2 + sigma**2)))
    code = theory.gaussian_code(mean, sigma**2, rms)
    # what decoding does to the norm
    scale = rms / np.sqrt(np.mean(code.variance + code.mean**2))
    x = x.astype(np.float64)
    covariance = ((x - x.mean(0)) * (f - f.mean(0))).mean(0)
    assert np.abs(code.mean * scale - f.mean(0)).max() < 0.05
    assert np.abs(code.variance * scale**2 - f.var(0)).max() < 0.08
    assert np.abs(code.covariance * scale - covariance).max() < 0.08


def test_gaussian_code_of_constant_coordinates():
    code = theory.gaussian_code([2.0, 0.5, -0.5, 0.0], [0, 0, 0, 0], rms=1.0)
    wanted = [theory.STRONG, theory.WEAK, -theory.WEAK, -theory.WEAK]
    np.testing.assert_allclose(code.mean, wanted, rtol=1e-12)
    np.testing.assert_allclose(code.variance, 0, atol=1e-12)
    assert not code.covariance.any()


def test_sign_fidelity_equals_simulation(sigma):
    with_query = simulated(sigma, lambda q, x: q @ np.sign(x).T)
    assert theory.sign_fidelity(sigma) == pytest.approx(with_query, abs=0.015)


def test_sign_fidelity_of_signs_equals_simulation(sigma):
    """Over all pairs, as the closed form is: within one query it is the same on average."""
    rng = np.random.default_rng(3)
    sigma = sigma[sigma > 0]
    x = rng.standard_normal((2000, len(sigma))) * sigma
    q = rng.standard_normal((300, len(sigma))) * sigma
    found = np.corrcoef((q @ x.T).ravel(), (np.sign(q) @ np.sign(x).T).ravel())[0, 1]
    assert theory.sign_fidelity(sigma, float_query=False) == pytest.approx(found, abs=0.01)


def test_sign_magnitude_fidelity_equals_simulation(sigma):
    with_query = simulated(sigma, lambda q, x: q @ decoded(x).T)
    assert theory.sign_magnitude_fidelity(sigma) == pytest.approx(with_query, abs=0.015)


def test_sign_magnitude_fidelity_of_codes_equals_simulation(sigma):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((2000, len(sigma))) * sigma).astype(np.float32)
    q = (rng.standard_normal((300, len(sigma))) * sigma).astype(np.float32)
    truth, estimate = q.astype(np.float64) @ x.T, decoded(q) @ decoded(x).T
    found = np.corrcoef(truth.ravel(), estimate.ravel())[0, 1]
    assert theory.sign_magnitude_fidelity(sigma, float_query=False) == pytest.approx(
        found, abs=0.02
    )


def test_even_coordinates_are_the_best_case(sigma):
    for float_query in (True, False):
        even = theory.sign_fidelity(np.ones_like(sigma), float_query)
        assert theory.sign_fidelity(sigma, float_query) <= even + 1e-12


def test_magnitude_bit_gains_with_heterogeneity_between_codes():
    z = np.random.default_rng(5).standard_normal(2000)
    gains = [theory.magnitude_gain(np.exp(s * z), False) for s in np.linspace(0, 1.5, 16)]
    assert (np.diff(gains) > 0).all()
    assert gains[0] == pytest.approx(1.386, abs=0.001)
    assert gains[-1] > 2.5


def test_magnitude_bit_always_helps_a_float_query():
    z = np.random.default_rng(5).standard_normal(2000)
    gains = [theory.magnitude_gain(np.exp(s * z)) for s in np.linspace(0, 1.5, 16)]
    assert min(gains) > 1.1


@pytest.mark.parametrize("dim", [64, 100, 256, 1024])
def test_rotation_evens_out_variances_as_predicted(dim):
    sigma = np.arange(1, dim + 1) ** -0.5
    # the variances after rotation, exactly: the rows of the rotation, squared
    left = []
    for transform in range(1, 9):
        rotation = Quantizer(dim, transform).rotate(np.eye(dim, dtype=np.float32))
        rotated = np.sqrt((rotation.astype(np.float64) ** 2).T @ sigma**2)
        left.append(theory.heterogeneity(rotated))
    predicted = theory.rotated_heterogeneity(sigma)
    assert predicted == pytest.approx(np.mean(left), rel=0.35)
    assert np.mean(left) < theory.heterogeneity(sigma) / 3


def test_rotated_heterogeneity_falls_with_dimensions():
    left = [
        theory.rotated_heterogeneity(np.tile([4.0, 1.0, 1.0, 1.0], n)) for n in (16, 64, 256, 1024)
    ]
    np.testing.assert_allclose(np.divide(left[:-1], left[1:]), 2, rtol=0.02)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("dim", [64, 256, 768])
def test_rotated_fidelity_equals_simulation(dim, power):
    sigma = np.arange(1, dim + 1) ** -power
    two = simulated(sigma, lambda q, x: q @ decoded(x, transform=1).T)

    def by_signs(q, x):
        rotate = Quantizer(dim, 1).rotate
        return rotate(q) @ np.sign(rotate(x)).T * np.linalg.norm(x, axis=1)

    one = simulated(sigma, by_signs)
    effective = theory.effective_dim(sigma)
    assert theory.rotated_fidelity(dim, effective) == pytest.approx(two, abs=0.01)
    assert theory.rotated_fidelity(dim, effective, bits=1) == pytest.approx(one, abs=0.02)


def test_rotated_fidelity_grows_with_dimensions_of_the_code():
    values = [theory.rotated_fidelity(dim, 64) for dim in (64, 128, 256, 512, 1024)]
    assert (np.diff(values) > 0).all()
    # noise falls as effective_dim / dim
    noise = [1 / value**2 - 1 for value in values]
    np.testing.assert_allclose(np.divide(noise[:-1], noise[1:]), 2, rtol=1e-9)


def test_wrong_arguments():
    for bad in ([], [[1.0]], [-1.0], [np.nan], [0.0, 0.0]):
        with pytest.raises(ValueError, match="expected"):
            theory.sign_fidelity(bad)
    with pytest.raises(ValueError, match="bits of 1 or 2"):
        theory.rotated_fidelity(64, 32, bits=3)
    with pytest.raises(ValueError, match="effective_dim <= dim"):
        theory.rotated_fidelity(64, 65)
