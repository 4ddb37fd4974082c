"""Quantizer: what it accepts, what it refuses, and that threads and types change nothing."""

import numpy as np
import pytest

from pybq import Code, Quantizer, Query, Statistics, kernels, set_kernel, simd
from pybq._codes import core


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 100, 384])
@pytest.mark.parametrize("transform", [0, 1, 65535])
def test_shapes_and_headers(rng, dim, transform):
    quantizer = Quantizer(dim, transform)
    vectors = rng.standard_normal((5, dim), dtype=np.float32)
    codes = quantizer.encode(vectors)
    assert quantizer.nbytes == 8 + 2 * -(-dim // 8)
    assert codes.shape == (5, quantizer.nbytes) and codes.dtype == np.uint8
    assert core.check_codes(codes) == (dim, transform)
    norms = [Code.from_numpy(code).norm for code in codes]
    assert np.allclose(norms, np.linalg.norm(vectors.astype(float), axis=1), rtol=1e-7)
    decoded = quantizer.decode(codes)
    assert decoded.shape == (5, dim) and decoded.dtype == np.float32
    assert np.allclose(np.linalg.norm(decoded, axis=1), norms, rtol=1e-5)


def test_one_vector_equals_row_of_many(rng):
    quantizer = Quantizer(50, 3)
    vectors = rng.standard_normal((4, 50), dtype=np.float32)
    assert np.array_equal(quantizer.encode(vectors[2]), quantizer.encode(vectors)[2])
    assert np.array_equal(quantizer.rotate(vectors[2]), quantizer.rotate(vectors)[2])
    codes = quantizer.encode(vectors)
    assert np.array_equal(quantizer.decode(codes[2]), quantizer.decode(codes)[2])
    assert np.array_equal(quantizer.decode(Code.from_numpy(codes[2])), quantizer.decode(codes)[2])


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_empty_and_short_batches(n, dtype):
    quantizer = Quantizer(10)
    vectors = np.ones((n, 10), dtype)
    assert quantizer.encode(vectors).shape == (n, quantizer.nbytes)
    assert quantizer.rotate(vectors).shape == (n, 10)
    assert quantizer.decode(quantizer.encode(vectors)).shape == (n, 10)


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", ">f8", "i1", "u2", "i8"])
def test_other_types_equal_float32(rng, dtype):
    vectors = (10 * rng.standard_normal((3000, 65))).astype(dtype)
    for transform in (0, 1):
        quantizer = Quantizer(65, transform)
        expected = vectors.astype(np.float32)
        assert np.array_equal(quantizer.encode(vectors), quantizer.encode(expected))
        assert np.array_equal(quantizer.rotate(vectors), quantizer.rotate(expected))


def test_strides_do_not_matter(rng):
    base = rng.standard_normal((40, 90), dtype=np.float32)
    quantizer = Quantizer(30, 9)
    views = {
        "every other row": base[::2, :30],
        "rows backwards": base[::-1, :30],
        "every third column": base[:, ::3],
        "columns backwards": base[:, 29::-1],
        "transposed": base.T[:30].T,
        "fortran order": np.asfortranarray(base[:, 5:35]),
        "one row repeated": np.broadcast_to(base[0, :30], (5, 30)),
        "unaligned": np.frombuffer(b"x" + base.tobytes(), np.float32, 600, 1).reshape(20, 30),
        "field of a record": np.zeros(7, [("id", "i1"), ("v", "f4", 30)])["v"],
    }
    for name, view in views.items():
        copy = np.array(view, order="C")
        assert np.array_equal(quantizer.encode(view), quantizer.encode(copy)), name
        assert np.array_equal(quantizer.rotate(view), quantizer.rotate(copy)), name
    codes = quantizer.encode(base[:, :30])
    assert np.array_equal(quantizer.decode(codes[::-2]), quantizer.decode(codes)[::-2])


def test_input_is_not_changed(rng):
    vectors = rng.standard_normal((10, 33), dtype=np.float32)
    vectors.flags.writeable = False
    before = vectors.copy()
    quantizer = Quantizer(33, 5)
    quantizer.encode(vectors)
    quantizer.rotate(vectors)
    assert np.array_equal(vectors, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_nothing(rng, dtype):
    vectors = rng.standard_normal((60_000, 128), dtype=np.float32).astype(dtype)  # 30 MB
    for transform in (0, 2):
        one = Quantizer(128, transform, threads=1)
        many = Quantizer(128, transform, threads=7)
        codes = one.encode(vectors)
        assert np.array_equal(many.encode(vectors), codes)
        assert np.array_equal(many.rotate(vectors), one.rotate(vectors))
        assert np.array_equal(many.decode(codes), one.decode(codes))


def test_first_bad_row_is_named(rng):
    vectors = rng.standard_normal((60_000, 128), dtype=np.float32)
    vectors[[12_345, 50_000], [7, 9]] = np.nan, np.inf
    for transform in (0, 1):
        for threads in (1, 4):
            quantizer = Quantizer(128, transform, threads=threads)
            for method in (quantizer.encode, quantizer.rotate):
                for values in (vectors, vectors.astype(np.float64)):
                    with pytest.raises(ValueError, match=r"^row 12345: NaN and infinite values"):
                        method(values)


def test_single_bad_vector_names_no_row():
    with pytest.raises(ValueError, match=r"^NaN and infinite values are not allowed$"):
        Quantizer(2).encode([1.0, np.nan])
    with pytest.raises(ValueError, match="^norm of the vector must not exceed 2.65e36$"):
        Quantizer(2).encode([3e38, 0])


def test_float64_too_large_for_float32_is_not_finite():
    with pytest.raises(ValueError, match="row 1: NaN and infinite values"):
        Quantizer(2).encode([[1.0, 2.0], [1e300, 0.0]])


def test_zero_vector_has_a_code():
    for transform in (0, 1):
        quantizer = Quantizer(12, transform)
        code = Code.from_numpy(quantizer.encode(np.zeros(12)))
        assert code.norm == 0 and code.to_binary()[8:] == bytes(4)
        assert np.array_equal(quantizer.decode(code), np.zeros(12))
        assert np.array_equal(quantizer.rotate(np.zeros(12)), np.zeros(12))


@pytest.mark.parametrize("shape", [(), (3,), (5,), (3, 5), (2, 3, 4), (0,), (4, 0)], ids=str)
def test_wrong_shape(shape):
    quantizer = Quantizer(4)
    with pytest.raises(ValueError) as error:
        quantizer.encode(np.zeros(shape))
    assert str(error.value) == f"expected vectors of shape (n, 4), got {shape}"


@pytest.mark.parametrize("values", [["a", "b"], [None, 1], [True, False], [1j, 2]], ids=str)
def test_wrong_kind(values):
    with pytest.raises(TypeError, match="expected vectors of float32, got dtype"):
        Quantizer(2).encode(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "expected dim between 1 and 16000, got 0"),
        ({"dim": 16001}, "expected dim between 1 and 16000, got 16001"),
        ({"dim": 3, "transform": -1}, "expected transform between 0 and 65535, got -1"),
        ({"dim": 3, "transform": 65536}, "expected transform between 0 and 65535, got 65536"),
        ({"dim": 3, "cut": "median"}, 'expected cut "rms" or "mean", got \'median\''),
        ({"dim": 3, "threads": 0}, "expected threads of at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        Quantizer(**arguments)
    assert str(error.value) == message


def test_decode_checks_codes(rng):
    quantizer = Quantizer(12, 1)
    codes = quantizer.encode(rng.standard_normal((3, 12)))
    with pytest.raises(TypeError, match="expected codes of dtype uint8, got float64"):
        quantizer.decode(codes.astype(float))
    with pytest.raises(ValueError, match=r"expected codes of shape \(n, 12\), got \(3, 11\)"):
        quantizer.decode(codes[:, :-1])
    with pytest.raises(ValueError, match="row 0: expected a code of transform 2, got 1"):
        Quantizer(12, 2).decode(codes)
    with pytest.raises(ValueError, match="row 0: expected a code of 13 dimensions, got 12"):
        Quantizer(13, 1).decode(codes)
    bad = codes.copy()
    bad[2, 9] |= 0x80  # beyond dimension 12
    with pytest.raises(ValueError, match="row 2: bits of the code beyond its dimensions"):
        quantizer.decode(bad)
    bad = codes.copy()
    bad[1, 3] = 7
    with pytest.raises(ValueError, match="row 1: transform of the code differs"):
        quantizer.decode(bad)


def test_cut_at_mean_is_quivers(rng):
    vectors = rng.standard_normal((20, 64), dtype=np.float32)
    codes = Quantizer(64, cut="mean").encode(vectors)
    for vector, code in zip(vectors, codes, strict=True):
        size = np.abs(vector.astype(float))
        strong = size > np.float32(size.mean())
        levels = Code.from_numpy(code).levels
        assert np.array_equal((levels == 0) | (levels == 3), strong)
        assert np.array_equal(levels >= 2, vector > 0)


def test_query_is_the_rotated_vector(rng):
    vector = rng.standard_normal(40)
    quantizer = Quantizer(40, 8)
    query = quantizer.query(vector)
    assert query == Query(quantizer.rotate(vector), 8)
    with pytest.raises(ValueError, match=r"expected a vector of shape \(40,\), got \(1, 40\)"):
        quantizer.query(vector[None])


def test_rotation_keeps_inner_products(rng):
    vectors = rng.standard_normal((30, 100))
    rotated = Quantizer(100, 4).rotate(vectors).astype(float)
    assert np.allclose(rotated @ rotated.T, vectors @ vectors.T, atol=1e-4)
    assert not np.allclose(rotated, vectors, atol=0.1)


def test_decoded_rotated_code_keeps_the_direction(rng):
    """Cosine 0.940: 1 - distortion of Max's quantizer, for Gaussian coordinates."""
    vectors = rng.standard_normal((500, 384)) * np.geomspace(1, 30, 384)
    quantizer = Quantizer(384, 1)
    decoded = quantizer.decode(quantizer.encode(vectors)).astype(float)
    cosine = (vectors * decoded).sum(1) / (
        np.linalg.norm(vectors, axis=1) * np.linalg.norm(decoded, axis=1)
    )
    assert abs(cosine.mean() - 0.940) < 0.003


def test_kernels_agree(rng, restore_kernel):
    """The kernels themselves are tested in test_kernel.py; this is the way through Python."""
    vectors = rng.standard_normal((50, 133), dtype=np.float32)
    results = []
    for name in kernels():
        set_kernel(name)
        assert simd() == name
        quantizer = Quantizer(133, 6)
        codes = quantizer.encode(vectors)
        query = quantizer.rotate(vectors[0])
        results.append(
            (
                codes.tobytes(),
                query.tobytes(),
                quantizer.decode(codes).tobytes(),
                core.hamming_distances(codes, codes[0]).tobytes(),
                core.cosine_distances(codes, query).tobytes(),
            )
        )
    assert "portable" in kernels()
    assert all(result == results[0] for result in results)


def test_unknown_kernel_is_refused(restore_kernel):
    before = simd()
    with pytest.raises(ValueError, match=r"expected a kernel that this CPU runs \(.*portable.*\)"):
        set_kernel("mmx")
    assert simd() == before
    set_kernel("auto")
    assert simd() == kernels()[0]


def test_distances_equal_those_of_levels_and_decoded_vectors(rng):
    quantizer = Quantizer(50)
    vectors = rng.standard_normal((40, 50))
    codes = quantizer.encode(vectors)
    levels = np.array([Code.from_numpy(code).levels for code in codes], int)
    strong = (levels == 0) | (levels == 3)
    signs = (levels >= 2) != (levels[0] >= 2)
    assert np.array_equal(
        core.hamming_distances(codes, codes[0]), np.abs(levels - levels[0]).sum(1)
    )
    assert np.array_equal(core.sign_distances(codes, codes[0]), signs.sum(1))
    assert np.array_equal(
        core.quiver_distances(codes, codes[0]),
        (signs * (1 + strong) * (1 + strong[0])).sum(1),
    )
    query = vectors[3]
    decoded = quantizer.decode(codes).astype(float)
    products = decoded @ query
    lengths = np.linalg.norm(decoded, axis=1)
    assert np.allclose(core.inner_products(codes, query), products, rtol=1e-4, atol=1e-4)
    cosine = 1 - products / (lengths * np.linalg.norm(query))
    assert np.allclose(core.cosine_distances(codes, query), cosine, atol=1e-5)
    l2 = np.linalg.norm(decoded - query, axis=1)
    assert np.allclose(core.l2_distances(codes, query), l2, rtol=1e-4)


def test_distances_refuse_what_cannot_be_compared(rng):
    codes = Quantizer(50).encode(rng.standard_normal((4, 50)))
    with pytest.raises(ValueError, match="different transforms 0 and 1"):
        core.hamming_distances(codes, Quantizer(50, 1).encode(np.ones(50)))
    with pytest.raises(ValueError, match="different dimensions 50 and 51"):
        core.hamming_distances(codes, Quantizer(51).encode(np.ones(51)))
    with pytest.raises(ValueError, match="different dimensions 50 and 49"):
        core.cosine_distances(codes, np.ones(49))
    with pytest.raises(ValueError, match="NaN and infinite"):
        core.cosine_distances(codes, np.full(50, np.nan))
    with pytest.raises(TypeError, match="expected codes of dtype uint8"):
        core.hamming_distances(codes.astype(int), codes[0])
    with pytest.raises(ValueError, match=r"expected codes of shape \(n, nbytes\)"):
        core.hamming_distances(codes[0], codes[0])
    assert len(core.hamming_distances(codes[:0], codes[0])) == 0


def test_masked_values_are_refused_as_nan(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((5, 8)).astype(np.float32)
    mask = np.zeros(vectors.shape, bool)
    quantizer = Quantizer(8, 1)
    whole = np.ma.array(vectors, mask=mask)
    np.testing.assert_array_equal(quantizer.encode(whole), quantizer.encode(vectors))
    mask[3, 2] = True
    for kind in (np.float16, np.float32, np.int64):
        masked = np.ma.array(vectors.astype(kind), mask=mask)
        for refuse in (quantizer.encode, quantizer.rotate, Statistics(8).update):
            with pytest.raises(ValueError, match="row 3: NaN"):
                refuse(masked)
        for refuse in (quantizer.query, Query):
            with pytest.raises(ValueError, match="NaN|finite"):
                refuse(masked[3])
