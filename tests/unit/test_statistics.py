"""Statistics: equal to a plain two-pass computation, however the rows are split."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pybq
from pybq._choice.statistics import Statistics
from pybq._codes import core

FIELDS = ["mean", "m2", "code_mean", "code_m2", "comoment", "positive"]


NO_SEARCHES = (0, [0, 0], [0, 0], [0, 0])


def expected(x):
    """The fields by two passes over all rows."""
    quantizer = pybq.Quantizer(x.shape[1])
    f = quantizer.decode(quantizer.encode(x)).astype(np.float64)
    positive = (x > 0).sum(axis=0)
    x = x.astype(np.float64)
    dx, df = x - x.mean(axis=0), f - f.mean(axis=0)
    return {
        "mean": x.mean(axis=0),
        "m2": (dx**2).sum(axis=0),
        "code_mean": f.mean(axis=0),
        "code_m2": (df**2).sum(axis=0),
        "comoment": (dx * df).sum(axis=0),
        "positive": positive,
    }


def collected(x, **options):
    statistics = Statistics(x.shape[1], **options)
    statistics.update(x)
    return statistics


def assert_equal(found, wanted, rtol=1e-9):
    """Relative to the largest value of a field that can nearly cancel."""
    assert found.count == wanted.count
    for name in FIELDS:
        a, b = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("dim", [1, 3, 64, 385])
@pytest.mark.parametrize("n", [1, 2, 999, 5000])
def test_fields_equal_two_passes(rng, n, dim):
    x = (rng.standard_normal((n, dim)) * rng.uniform(0.1, 3, dim) + 1).astype(np.float32)
    found = collected(x)
    assert found.count == n
    for name, wanted in expected(x).items():
        np.testing.assert_allclose(
            getattr(found, name), wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max()
        )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 700), max_size=6), st.randoms(use_true_random=False))
def test_merge_equals_single_pass_for_any_split_and_order(cuts, random):
    x = np.random.default_rng(11).standard_normal((700, 24)).astype(np.float32) + 3
    bounds = [0, *sorted(cuts), 700]
    parts = [collected(x[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    random.shuffle(parts)
    merged = Statistics(24)
    for part in parts:
        merged.merge(part)
    assert_equal(merged, collected(x))


def test_order_of_rows_does_not_matter(rng):
    x = rng.standard_normal((3000, 50)).astype(np.float32)
    assert_equal(collected(x[rng.permutation(len(x))]), collected(x))


def test_many_small_updates_equal_one(rng):
    x = rng.standard_normal((2000, 16)).astype(np.float32)
    small = Statistics(16)
    for row in x:
        small.update(row)
    assert_equal(small, collected(x))


def test_large_mean_and_tiny_spread(rng):
    """Mean 1e6, spread of one to three float32 steps: naive sums of squares lose every digit."""
    steps = rng.integers(0, 4, (20_000, 3))
    x = (1e6 + steps * 0.0625).astype(np.float32)
    assert np.array_equal((x.astype(np.float64) - 1e6) / 0.0625, steps)
    found = collected(x)
    for j in range(3):
        column = [int(s) for s in steps[:, j]]
        total, squares = sum(column), sum(s * s for s in column)
        m2 = (Fraction(squares) - Fraction(total * total, len(column))) / 256
        assert found.m2[j] == pytest.approx(float(m2), rel=1e-9)
        assert found.mean[j] == pytest.approx(1e6 + total / len(column) / 16, rel=1e-15)


def test_merging_many_parts_of_large_mean_and_tiny_spread(rng):
    """Mean 1e6, spread 1e-3, in float64 as the database keeps it: 1,000 parts of 1,000 rows."""
    x = 1e6 + 1e-3 * rng.standard_normal((1000, 1000, 2))
    merged = Statistics(2)
    for part in x:
        mean = part.mean(axis=0)
        m2 = ((part - mean) ** 2).sum(axis=0)
        merged.merge(
            Statistics.from_row((1000, mean, m2, mean, m2, m2, [1000, 1000], *NO_SEARCHES))
        )
    deviations = (x - 1e6).reshape(-1, 2)
    exact = ((deviations - deviations.mean(axis=0)) ** 2).sum(axis=0)
    assert merged.count == 1_000_000
    # a mean near 1e6 is known to 1.2e-10, about 1e-7 of the spread
    np.testing.assert_allclose(merged.m2, exact, rtol=1e-8)
    np.testing.assert_allclose(merged.mean, 1e6 + deviations.mean(axis=0), rtol=1e-15)


def test_counts_of_a_billion_rows_stay_exact(rng):
    part = collected(rng.standard_normal((1024, 4)).astype(np.float32))
    whole = Statistics(4)
    whole.merge(part)
    for _ in range(20):
        whole.merge(whole)
    assert whole.count == 1024 << 20
    assert np.array_equal(whole.positive, part.positive.astype(object) << 20)
    np.testing.assert_allclose(whole.variance, part.variance, rtol=1e-12)
    np.testing.assert_allclose(whole.mean, part.mean, rtol=1e-12)


def test_empty_statistics_are_defined():
    empty = Statistics(5)
    empty.update(np.empty((0, 5), np.float32))
    assert empty.count == 0
    assert empty.cv_sigma == 0
    assert empty.sign_entropy == 0
    assert not empty.variance.any()
    empty.merge(Statistics(5))
    assert empty.count == 0


def test_one_vector_has_no_variance():
    one = collected(np.array([[1.0, -2.0, 0.5]], np.float32))
    assert one.count == 1
    assert not one.variance.any()
    assert not one.code_variance.any()
    assert one.positive.tolist() == [1, 0, 1]
    assert one.cv_sigma == 0
    assert one.sign_entropy == 0


def test_zero_vectors_count_as_zeros():
    x = np.zeros((4, 3), np.float32)
    x[0] = [1, -1, 2]
    for normalize in (False, True):
        found = collected(x, normalize=normalize)
        assert found.count == 4
        assert found.positive.tolist() == [1, 0, 1]
        assert np.isfinite(found.variance).all()
    assert found.mean[0] == pytest.approx(1 / np.sqrt(6) / 4)


def test_constant_coordinate_has_no_variance(rng):
    x = rng.standard_normal((5000, 8)).astype(np.float32)
    x[:, 3] = 0.1
    found = collected(x)
    assert found.variance[3] == pytest.approx(0, abs=1e-30)
    assert found.mean[3] == pytest.approx(np.float32(0.1), rel=1e-15)
    assert (found.variance[np.arange(8) != 3] > 0.9).all()


def test_normalize_ignores_lengths(rng):
    x = rng.standard_normal((1000, 32)).astype(np.float32)
    lengths = np.exp(rng.standard_normal((1000, 1))).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert_equal(collected(x * lengths, normalize=True), collected(unit), rtol=1e-5)
    total = collected(x, normalize=True)
    assert (total.variance + total.mean**2).sum() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 1e34])
def test_descriptors_do_not_depend_on_scale(rng, scale):
    x = rng.standard_normal((500, 16)).astype(np.float32) * np.linspace(0.5, 2, 16)
    found = collected((x * scale).astype(np.float32))
    assert found.cv_sigma == pytest.approx(collected(x).cv_sigma, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_any_number_type_and_strides(rng, dtype):
    x = np.round(rng.standard_normal((300, 20)) * 8).astype(dtype)
    wanted = collected(x.astype(np.float32))
    assert_equal(collected(x), wanted)
    assert_equal(collected(np.asfortranarray(x)), wanted)
    assert_equal(collected(x[::-1]), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("normalize", [False, True])
def test_bad_value_is_named_and_nothing_is_added(rng, bad, normalize):
    x = rng.standard_normal((5000, 40))
    found = collected(x, normalize=normalize)
    before = found.to_row()
    x[4321, 7] = bad
    with pytest.raises(ValueError, match="row 4321: NaN and infinite values are not allowed"):
        found.update(x)
    assert found.to_row() == before


def test_wrong_arguments():
    statistics = Statistics(4)
    with pytest.raises(ValueError, match=r"expected vectors of shape \(n, 4\), got \(2, 3\)"):
        statistics.update(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="expected vectors of float32"):
        statistics.update(np.array([["a"] * 4]))
    with pytest.raises(ValueError, match="expected statistics of 4 dimensions, got 5"):
        statistics.merge(Statistics(5))
    with pytest.raises(ValueError, match="expected statistics with normalize=False, got True"):
        statistics.merge(Statistics(4, normalize=True))
    with pytest.raises(ValueError, match="dim"):
        Statistics(0)


def test_row_round_trips(rng):
    found = collected(rng.standard_normal((100, 6)).astype(np.float32))
    row = found.to_row()
    assert [type(field) for field in row] == [int] + [list] * 6 + [int] + [list] * 3
    assert all(type(value) is float for field in row[1:6] for value in field)
    assert all(type(value) is int for field in (row[6], *row[8:]) for value in field)
    assert row[7] > 0
    assert Statistics.from_row(row).to_row() == row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[:10], "11 fields"),
        (lambda row: (row[0], row[1][:-1], *row[2:]), "6 arrays"),
        (lambda row: (row[0], [np.nan] * 6, *row[2:]), "finite"),
        (lambda row: (-1, *row[1:]), "count -1"),
        (lambda row: (*row[:6], [101] * 6, *row[7:]), "positive <= count"),
        (lambda row: (*row[:7], 101, *row[8:]), "searches <= count"),
        (lambda row: (*row[:8], [10 * row[7] + 1, 0], *row[9:]), "searches <= count"),
        (lambda row: (*row[:9], [-1, 0], row[10]), "searches <= count"),
        (lambda row: (*row[:10], [100 * row[7] + 1, 0]), "squares of at most 100"),
        (lambda row: (*row[:10], [0]), "2 integers each"),
        (lambda row: (*row[:2], [-1.0] * 6, *row[3:]), "m2"),
    ],
)
def test_impossible_row_is_rejected(rng, change, message):
    row = collected(rng.standard_normal((100, 6)).astype(np.float32)).to_row()
    with pytest.raises(ValueError, match=message):
        Statistics.from_row(change(row))


def test_what_is_read_cannot_be_changed(rng):
    found = collected(rng.standard_normal((10, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        found.mean[0] = 1


def test_descriptors():
    x = np.array([[1.0, 3.0], [-1.0, -3.0]], np.float32)
    found = collected(x)
    assert found.cv_sigma == pytest.approx(0.5)  # sigma 1 and 3
    assert found.sign_entropy == pytest.approx(1)
    always = collected(np.abs(x))
    assert always.sign_entropy == 0
    quarter = collected(np.array([[1.0], [-1.0], [-1.0], [-1.0]], np.float32))
    assert quarter.sign_entropy == pytest.approx(0.8113, abs=1e-4)


# -- searches ---------------------------------------------------------------------------


def found_by(x, codes, query, k, order):
    """Of the k nearest rows to row `query`, those among the k best by code."""
    others = np.arange(len(x)) != query
    products = x @ x[query]
    estimates = codes @ x[query]
    if order == 0:
        squares = (x**2).sum(axis=1) / 2
        products, estimates = products - squares, estimates - squares
    reach = np.sort(products[others])[-k]
    best = np.flatnonzero(others)[np.argsort(-estimates[others], kind="stable")[:k]]
    return int((products[best] >= reach).sum())


def reference_searches(window):
    """The sums of one window, comparing every code."""
    x = window.astype(np.float64)
    n = min(64, len(x) // 8)
    asked = [len(x) * i // n for i in range(n)]
    sums = []
    for quantizer in (pybq.Quantizer(x.shape[1]), pybq.Quantizer(x.shape[1], 1)):
        codes = quantizer.decode(quantizer.encode(window)).astype(np.float64)
        sums.append(np.array([[found_by(x, codes, q, 10, o) for q in asked] for o in (0, 1)]))
    axes, rotated = sums
    return n, axes.sum(1), rotated.sum(1), ((rotated - axes) ** 2).sum(1)


@pytest.mark.parametrize("n", [100, 777, 1024])
@pytest.mark.parametrize("dim", [7, 32, 100])
@pytest.mark.parametrize("lengths", [0, 0.3])
def test_searches_equal_reference(rng, n, dim, lengths):
    """But for ties, and for what is far and looks near: few of hundreds of neighbours."""
    x = rng.standard_normal((n, dim)) * np.linspace(0.3, 2, dim)
    x *= np.exp(lengths * rng.standard_normal((n, 1))) / np.linalg.norm(x, axis=1, keepdims=True)
    found = collected(x.astype(np.float32))
    searches, axes, rotated, squares = reference_searches(x.astype(np.float32))
    assert found.searches == searches
    tolerance = 2 + searches // 8
    np.testing.assert_allclose(found.found_axes, axes, atol=tolerance)
    np.testing.assert_allclose(found.found_rotated, rotated, atol=tolerance)
    np.testing.assert_allclose(found.squares, squares, atol=4 * tolerance)
    assert (found.found_axes > 0).all()


def test_searches_are_the_same_however_rows_come(rng):
    """One stream, in updates of any size; a window is searched when its last row has come."""
    x = rng.standard_normal((70_000, 8)).astype(np.float32)
    whole = collected(x)
    assert whole.searches == 3 * 64  # from rows 0, 32,768 and 65,536 on, 1,024 each
    parts = Statistics(8)
    for part in np.split(x, [1, 100, 1023, 1024, 5000, 32_767, 66_000]):
        parts.update(part)
    assert parts.to_row()[7:] == whole.to_row()[7:]
    assert collected(x[:1024]).searches == collected(x[:32_768]).searches == 64


def test_few_rows_are_not_searched(rng):
    x = rng.standard_normal((100, 8)).astype(np.float32)
    assert collected(x[:99]).searches == 0
    assert collected(x).searches == 12
    assert collected(x, search=False).searches == 0


def test_searches_are_merged_by_adding(rng):
    x = rng.standard_normal((3000, 16)).astype(np.float32)
    left, right = collected(x[:1200]), collected(x[1200:])
    sums = [
        np.add(a, b).tolist() for a, b in zip(left.to_row()[7:], right.to_row()[7:], strict=True)
    ]
    left.merge(right)
    assert [left.to_row()[7], *left.to_row()[8:]] == sums
    assert left.searches == 128


def test_searches_of_parts_tell_what_those_of_the_whole_do(rng):
    """Other windows, so other sums: equal only up to chance, three standard errors of each."""
    x = rng.standard_normal((20_000, 32)).astype(np.float32) * np.linspace(0.3, 2, 32)
    merged = Statistics(32)
    for part in np.split(x, 8):
        merged.merge(collected(part))
    assert merged.searches == 8 * 64
    share = merged.found_rotated / (10 * merged.searches)
    whole = collected(x).found_rotated / 640
    np.testing.assert_allclose(share, whole, atol=3 * np.sqrt(0.25 / 64 / 10))


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e34])
def test_searches_do_not_depend_on_scale(rng, scale):
    x = rng.standard_normal((500, 16)) * np.linspace(0.5, 2, 16)
    wanted = collected(x.astype(np.float32)).to_row()[7:]
    found = collected((x * scale).astype(np.float32)).to_row()[7:]
    np.testing.assert_allclose(found[1], wanted[1], atol=4)
    np.testing.assert_allclose(found[2], wanted[2], atol=4)


def test_zero_vectors_are_not_searched_with():
    assert collected(np.zeros((500, 16), np.float32)).to_row()[7:] == NO_SEARCHES


def test_statistics_are_the_same_on_every_kernel(rng):
    x = rng.standard_normal((2500, 75)).astype(np.float32)
    rows = []
    for kernel in core.kernels():
        core.set_kernel(kernel)
        rows.append(collected(x).to_row())
    core.set_kernel("auto")
    assert rows[0][7] == 64
    assert all(row == rows[0] for row in rows)
