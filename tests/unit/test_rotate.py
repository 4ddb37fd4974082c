"""The rotation: orthogonal for every dim, undone exactly, fixed by its number alone."""

import corelib
import numpy as np
import pytest
import reference

KERNELS = corelib.available_kernels()
SMALL_DIMS = list(range(1, 131))
LARGE_DIMS = [384, 512, 768, 1000, 1024, 1536, 3072, 16000]
EPSILON = np.finfo(np.float32).eps


@pytest.mark.parametrize("name", KERNELS)
def test_rotate_equals_reference(name, rng):
    with corelib.use_kernel(name):
        for dim in SMALL_DIMS + LARGE_DIMS:
            for transform in (1, 2, 65535):
                x = rng.standard_normal(dim).astype(np.float32)
                found = corelib.rotate(x, transform)
                assert found.tobytes() == reference.rotate(x, transform).tobytes(), dim


def test_rotate_in_place(rng):
    for dim in (1, 3, 64, 100, 384, 1000):
        x = rng.standard_normal(dim).astype(np.float32)
        y = x.copy()
        address = corelib.address(y)
        corelib.load().bq_rotate(corelib.rotation(dim, 5), address, address)
        assert y.tobytes() == corelib.rotate(x, 5).tobytes()


@pytest.mark.parametrize("dim", SMALL_DIMS)
def test_rotation_is_orthogonal(dim):
    rows = [corelib.rotate(row, 1) for row in np.eye(dim, dtype=np.float32)]
    matrix = np.array(rows, np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=20 * EPSILON)


@pytest.mark.parametrize("dim", LARGE_DIMS)
def test_rotation_keeps_inner_products(dim, rng):
    x = rng.standard_normal((8, dim)).astype(np.float32)
    x[0] = 0
    x[0, 3] = 1  # the hardest vector to spread
    y = np.array([corelib.rotate(row, 1) for row in x], np.float64)
    scale = np.linalg.norm(x, axis=1)
    difference = (y @ y.T - x.astype(np.float64) @ x.T) / np.outer(scale, scale)
    assert np.abs(difference).max() < 20 * EPSILON


@pytest.mark.parametrize("name", KERNELS)
def test_unrotate_undoes_rotate(name, rng):
    with corelib.use_kernel(name):
        for dim in SMALL_DIMS + LARGE_DIMS:
            x = rng.standard_normal(dim).astype(np.float32)
            back = corelib.unrotate(corelib.rotate(x, 9), 9)
            assert np.abs(back - x).max() < 30 * EPSILON * np.abs(x).max(), dim


def test_transforms_differ(rng):
    for dim in (64, 100, 384):
        x = rng.standard_normal(dim)
        x = (x / np.linalg.norm(x)).astype(np.float32)
        rotated = [corelib.rotate(x, transform) for transform in (1, 2, 3, 256, 65535)]
        for i, a in enumerate(rotated):
            assert abs(a @ x) < 0.5
            assert all(abs(a @ b) < 0.5 for b in rotated[:i])


def test_rotation_spreads_every_axis():
    """No image of an axis stands out: coordinates nearly as those of a random direction."""
    for dim in (255, 256, 384, 768, 1000, 1024, 1536, 2047):
        axes = np.eye(dim, dtype=np.float32)[:: dim // 32]
        image = np.array([corelib.rotate(axis, 1) for axis in axes]) * np.sqrt(dim)
        kurtosis = (image.astype(np.float64) ** 4).mean(axis=1)
        assert kurtosis.max() < 6, dim  # Gaussian: 3; two stuck coordinates of 1/4: 12 and more


@pytest.mark.parametrize("dim", [128, 384, 768, 1000])
def test_cosine_between_rotated_vector_and_its_code(dim, rng):
    """0.940 for Gaussian coordinates (Max 1960: distortion 0.1175), and so after any rotation."""
    skewed = rng.lognormal(0, 1.5, (200, dim))
    for x in (rng.standard_normal((200, dim)), skewed):
        cosines = []
        for row in x.astype(np.float32):
            _, planes, norm = corelib.encode(row, 1)
            rotated = corelib.rotate(row, 1).astype(np.float64)
            decoded = reference.decode(planes, dim, 1.0)
            cosines.append(rotated @ decoded / np.linalg.norm(rotated))
        assert np.mean(cosines) == pytest.approx(0.940, abs=0.003)
