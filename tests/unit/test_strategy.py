"""Strategy: predicted fidelity against measured, and the choice against the better side."""

import math

import numpy as np
import pytest
from shared import load_lsa

from pybq import Quantizer
from pybq._choice.fidelity import fidelities
from pybq._choice.probe import Probe, probe, searched
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import MIN_ROWS, choose

SEED = 20261121
ROWS, QUERIES = 2400, 400


def low_rank(rng, n, dim, rank):
    factors = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dim))
    return factors / math.sqrt(rank) + 0.1 * rng.standard_normal((n, dim))


def blocks(rng, n, dim, rho, size):
    common = np.repeat(rng.standard_normal((n, -(-dim // size))), size, axis=1)[:, :dim]
    return math.sqrt(rho) * common + math.sqrt(1 - rho) * rng.standard_normal((n, dim))


def normal(rng, n, dim):
    return rng.standard_normal((n, dim))


def bag_of_words(rng, n, dim):
    topics = rng.dirichlet(np.full(dim, 0.05), size=20) / np.arange(1, dim + 1) ** 0.8
    shares = rng.dirichlet(np.full(20, 0.2), size=n) @ topics
    return rng.multinomial(60, shares / shares.sum(1, keepdims=True)) + 1e-6


GAUSSIAN = {
    "isotropic": normal,
    "power law 0.5": lambda r, n, d: normal(r, n, d) * np.arange(1, d + 1) ** -0.5,
    "power law 1": lambda r, n, d: normal(r, n, d) / np.arange(1, d + 1),
    "log-normal 0.15": lambda r, n, d: normal(r, n, d) * np.exp(0.15 * r.standard_normal(d)),
    "log-normal 0.6": lambda r, n, d: normal(r, n, d) * np.exp(0.6 * r.standard_normal(d)),
    "shift all 0.3": lambda r, n, d: normal(r, n, d) + 0.3,
    "shift all 1": lambda r, n, d: normal(r, n, d) + 1,
    "shift all 3": lambda r, n, d: normal(r, n, d) + 3,
    "shift random 1": lambda r, n, d: normal(r, n, d) + r.standard_normal(d),
    "low rank 8": lambda r, n, d: low_rank(r, n, d, 8),
    "low rank 32": lambda r, n, d: low_rank(r, n, d, 32),
    "blocks 0.5 x 8": lambda r, n, d: blocks(r, n, d, 0.5, 8),
    "blocks 0.9 x 8": lambda r, n, d: blocks(r, n, d, 0.9, 8),
    "blocks 0.9 x 32": lambda r, n, d: blocks(r, n, d, 0.9, 32),
}
OTHER = {
    "uniform": lambda r, n, d: r.uniform(-1, 1, (n, d)),
    "tanh of 32 factors": lambda r, n, d: np.tanh(2 * low_rank(r, n, d, 32)),
    "signs of 16 factors": lambda r, n, d: np.sign(low_rank(r, n, d, 16)),
    "ReLU of 32 factors": lambda r, n, d: np.maximum(0, low_rank(r, n, d, 32)),
    "Laplace": lambda r, n, d: r.laplace(size=(n, d)),
    "Student t, 3": lambda r, n, d: r.standard_t(3, size=(n, d)),
    "gamma 2": lambda r, n, d: r.gamma(2, size=(n, d)),
    "one in 16 x 10": lambda r, n, d: normal(r, n, d) * np.where(np.arange(d) % 16, 1, 10),
    "half constant": lambda r, n, d: np.where(np.arange(d) % 2, normal(r, n, d), 0.5),
    "sparse 10 %": lambda r, n, d: normal(r, n, d) * (r.uniform(size=(n, d)) < 0.1),
    "bag of words": bag_of_words,
    "random walk": lambda r, n, d: np.cumsum(normal(r, n, d), axis=1),
}
FAMILIES = GAUSSIAN | OTHER


def make(family, dim):
    vectors = FAMILIES[family](np.random.default_rng(SEED), ROWS + QUERIES, dim)
    norms = np.linalg.norm(vectors, axis=1)
    vectors = (vectors[norms > 0] / norms[norms > 0, None]).astype(np.float32)
    return vectors[QUERIES:], vectors[:QUERIES]


def collected(base):
    statistics = Statistics(base.shape[1])
    statistics.update(base)
    return statistics


def products(base, queries, transform):
    """True and estimated inner products, shape (queries, rows)."""
    quantizer = Quantizer(base.shape[1], transform)
    decoded = quantizer.decode(quantizer.encode(base))
    return queries @ base.T, queries @ decoded.T


def measured_fidelity(base, queries, transform):
    """Mean correlation within a query."""
    pairs = zip(*products(base, queries, transform), strict=True)
    return np.mean([np.corrcoef(truth, estimate)[0, 1] for truth, estimate in pairs])


def measured_recall(base, queries, transform):
    """Recall@10 of each query, for vectors of norm 1."""
    truth, estimate = products(base, queries, transform)
    reach = np.partition(truth, -10, axis=1)[:, -10] - 1e-6
    # equal codes are ranked at random
    noise = np.random.default_rng(SEED).standard_normal(estimate.shape, np.float32)
    nearest = np.argpartition(-(estimate + 1e-6 * noise), 9, axis=1)[:, :10]
    return (np.take_along_axis(truth, nearest, axis=1) >= reach[:, None]).mean(axis=1)


def assert_choice_costs_nothing(base, queries):
    """At most 0.01 recall against the better side, beyond twice the error of 400 queries."""
    decision = choose(collected(base))
    axis = measured_recall(base, queries, 0)
    rotated = measured_recall(base, queries, 1)
    chosen, other = (rotated, axis) if decision.rotate else (axis, rotated)
    error = (rotated - axis).std() / math.sqrt(len(axis))
    cost = other.mean() - chosen.mean()
    print(f"{decision.reason} cost {cost:.3f} +- {error:.3f}, seed {SEED}")
    assert cost <= 0.01 + 2 * error


@pytest.mark.parametrize("dim", [64, 384])
@pytest.mark.parametrize("family", FAMILIES)
def test_choice_is_the_better_side(family, dim):
    assert_choice_costs_nothing(*make(family, dim))


@pytest.mark.slow
@pytest.mark.parametrize("family", GAUSSIAN)
def test_choice_is_the_better_side_at_1536_dimensions(family):
    assert_choice_costs_nothing(*make(family, 1536))


def test_choice_is_the_better_side_on_real_vectors():
    base, queries = load_lsa()
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    assert_choice_costs_nothing(base, queries)
    decision = choose(collected(base))
    assert decision.rotate
    assert decision.f_rotate > decision.f_axis + 0.1


@pytest.mark.parametrize(
    ("family", "rotate"),
    [
        ("power law 0.5", True),
        ("log-normal 0.15", True),  # 0.04 recall for a lead of only 0.006
        ("blocks 0.9 x 8", True),  # no lead at all, 0.07 recall
        ("random walk", True),  # the axes seem ahead
        ("shift all 1", False),
        ("shift all 3", False),
        ("uniform", False),
        ("tanh of 32 factors", False),
        ("signs of 16 factors", False),
        ("sparse 10 %", True),
        ("bag of words", True),
    ],
)
def test_choice_where_it_matters(family, rotate):
    decision = choose(collected(make(family, 256)[0]))
    assert decision.rotate is rotate
    assert decision.transform == int(rotate)


# Independent coordinates, where single coordinates say all there is to know.
INDEPENDENT = [
    "isotropic",
    "power law 0.5",
    "log-normal 0.15",
    "log-normal 0.6",
    "shift all 0.3",
    "shift all 1",
    "shift random 1",
    "uniform",
    "Laplace",
    "one in 16 x 10",
    "sparse 10 %",
]


@pytest.mark.parametrize("family", INDEPENDENT)
def test_predicted_fidelity_equals_measured(family):
    base, queries = make(family, 384)
    f_axis, _, f_rotate = fidelities(collected(base))
    assert f_axis == pytest.approx(measured_fidelity(base, queries, 0), abs=0.02)
    assert f_rotate == pytest.approx(measured_fidelity(base, queries, 1), abs=0.02)


def test_gaussian_fidelity_equals_that_of_the_axes_on_gaussian_data():
    f_axis, f_gaussian, _ = fidelities(collected(make("log-normal 0.6", 768)[0]))
    assert f_gaussian == pytest.approx(f_axis, abs=0.005)


def test_even_gaussian_coordinates_have_the_fidelity_of_the_quantizer():
    """1 - D of Max's quantizer is 0.8825, and its root 0.9394."""
    statistics = collected(np.random.default_rng(SEED).standard_normal((5000, 1000)))
    for fidelity in fidelities(statistics):
        assert fidelity == pytest.approx(math.sqrt(0.8825), abs=1e-3)


@pytest.mark.parametrize("scale", [1e-35, 1e-3, 1e3, 1e32])
def test_decision_does_not_depend_on_scale(scale):
    base, _ = make("shift all 1", 64)
    wanted = choose(collected(base))
    found = choose(collected((base * scale).astype(np.float32)))
    assert found.rotate == wanted.rotate
    assert found.f_axis == pytest.approx(wanted.f_axis, rel=1e-4)
    assert found.f_rotate == pytest.approx(wanted.f_rotate, rel=1e-4)


def test_decision_reports_what_it_saw():
    statistics = collected(make("power law 0.5", 64)[0])
    decision = choose(statistics, transform=77)
    assert decision.transform == 77
    assert (decision.f_axis, decision.f_gaussian, decision.f_rotate) == fidelities(statistics)
    assert decision.cv_sigma == statistics.cv_sigma
    assert decision.sign_entropy == statistics.sign_entropy
    assert decision.count == ROWS
    assert f"{decision.f_axis:.3f}" in decision.reason
    assert f"{decision.f_rotate:.3f}" in decision.reason
    with pytest.raises(AttributeError):
        decision.rotate = False


@pytest.mark.parametrize(
    "vectors",
    [
        np.empty((0, 5)),
        np.ones((1, 5)),
        np.ones((500, 5)),
        np.zeros((500, 5)),
        np.full((500, 5), 1e6),
    ],
    ids=["none", "one", "constant", "zeros", "large constant"],
)
def test_nothing_to_learn_from(vectors):
    decision = choose(collected(vectors))
    assert decision.rotate and decision.transform == 1
    assert math.isnan(decision.f_axis) and math.isnan(decision.f_rotate)
    assert "cannot go far wrong" in decision.reason


def test_few_rows_are_not_trusted():
    vectors = np.random.default_rng(SEED).uniform(-1, 1, (MIN_ROWS, 64))
    few = choose(collected(vectors[:-1]))
    assert few.rotate
    assert "99 rows are too few" in few.reason
    assert not choose(collected(vectors)).rotate


def test_some_constant_coordinates_are_no_obstacle():
    vectors = np.random.default_rng(SEED).standard_normal((2000, 64))
    vectors[:, ::3] = 0
    vectors[:, 1] = 5
    assert all(0 < fidelity <= 1 for fidelity in fidelities(collected(vectors)))


def test_one_dimension():
    decision = choose(collected(np.random.default_rng(SEED).standard_normal((500, 1))))
    assert decision.transform in (0, 1)
    assert decision.f_axis <= 1.000001


@pytest.mark.parametrize("transform", [0, -1, 65536])
def test_impossible_transform_is_rejected(transform):
    with pytest.raises(ValueError, match="expected transform between 1 and 65535"):
        choose(Statistics(3), transform=transform)


# -- probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("family", ["power law 0.5", "uniform", "random walk"])
def test_probe_finds_the_better_side(family, metric):
    base, queries = make(family, 128)
    found = probe(base, queries, metric=metric)
    assert (found.rows, found.queries, found.k) == (2000, 400, 10)
    assert found.decisive
    assert (found.recall_rotate > found.recall_axis) is (family != "uniform")


def test_probe_equals_recall_by_hand():
    base, queries = make("log-normal 0.6", 96)
    base, queries = base[:2000], queries[:400]
    found = probe(base, queries)
    axis, rotated = (measured_recall(base, queries, transform) for transform in (0, 1))
    assert found.recall_axis == pytest.approx(axis.mean(), abs=0.002)
    assert found.recall_rotate == pytest.approx(rotated.mean(), abs=0.002)
    assert found.error == pytest.approx((rotated - axis).std() / 20, rel=0.1)


def test_probe_takes_queries_that_are_not_searched():
    """A row that is its own query would be found always."""
    found = probe(make("isotropic", 64)[0], k=1)
    assert found.rows == 2000
    assert found.queries == 400
    assert found.recall_axis < 0.9


def test_probe_repeats():
    base, _ = make("isotropic", 64)
    assert probe(base) == probe(base)


def test_probe_of_equal_rows_costs_nothing():
    base = np.tile(make("isotropic", 32)[0][:1], (500, 1))
    found = probe(base)
    assert found.recall_axis == found.recall_rotate == 1
    assert not found.decisive


@pytest.mark.parametrize("n", [2, 3, 11])
def test_probe_of_few_rows(n):
    found = probe(np.random.default_rng(SEED).standard_normal((n, 8)))
    assert found.rows + found.queries == n
    assert found.k <= found.rows
    assert 0 <= found.recall_axis <= 1


def test_probe_wrong_arguments():
    vectors = np.zeros((10, 4), np.float32)
    with pytest.raises(ValueError, match="expected at least 2 vectors"):
        probe(vectors[:1])
    with pytest.raises(ValueError, match="metric"):
        probe(vectors, metric="hamming")
    with pytest.raises(ValueError, match="k of at least 1"):
        probe(vectors, k=0)
    with pytest.raises(ValueError, match="queries of shape"):
        probe(vectors, queries=np.empty((0, 4)))
    with pytest.raises(ValueError, match="NaN"):
        probe(np.full((10, 4), np.nan))


def test_clear_probe_overrules_prediction_and_says_so():
    statistics = collected(make("uniform", 64)[0])
    clear = Probe(recall_axis=0.5, recall_rotate=0.6, error=0.01, rows=2000, queries=400, k=10)
    decision = choose(statistics, clear)
    assert decision.rotate
    assert decision.probe is clear
    assert decision.f_axis > decision.f_rotate
    assert "measured" in decision.reason and "although" in decision.reason
    assert "0.600" in decision.reason and "0.500" in decision.reason


def test_unclear_probe_is_reported_only():
    statistics = collected(make("uniform", 64)[0])
    unclear = Probe(recall_axis=0.5, recall_rotate=0.52, error=0.01, rows=2000, queries=400, k=10)
    decision = choose(statistics, unclear)
    assert not decision.rotate
    assert "0.520" in decision.reason


def corners(rng, n, dim):
    """Clusters around corners of a cube: coordinates one by one look like coins."""
    centres = np.sign(rng.standard_normal((100, dim)))
    return centres[rng.integers(100, size=n)] + 0.2 * rng.standard_normal((n, dim))


def edges(rng, n, dim):
    """Flat coordinates that depend on each other: each is one of few values, told by its block."""
    common = np.repeat(rng.uniform(-1, 1, (n, dim // 8)), 8, axis=1)
    return common + 0.15 * rng.uniform(-1, 1, (n, dim))


@pytest.mark.parametrize(("make_rows", "rotate"), [(corners, False), (edges, True)])
def test_dependence_between_coordinates_is_seen(rng, make_rows, rotate):
    """Single coordinates speak for the other side: as they do with the same rows shuffled."""
    x = make_rows(rng, 4000, 64).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    statistics = collected(x)
    alone = Statistics(64, search=False)
    alone.update(x)
    measured = probe(x)
    assert measured.decisive
    assert (measured.recall_rotate > measured.recall_axis) == rotate
    assert choose(alone).rotate != rotate
    decision = choose(statistics)
    assert decision.rotate == rotate
    assert "measured" in decision.reason


def test_searches_are_by_the_metric(rng):
    """Norms that vary along a large offset: each metric finds what a probe says."""
    x = rng.standard_normal((4000, 256)) + np.where(np.arange(256) < 3, 20, 0)
    statistics = collected(x.astype(np.float32))
    product, distance = (searched(statistics, metric) for metric in ("inner_product", "l2"))
    assert product != distance
    for metric in ("inner_product", "l2"):
        found, measured = searched(statistics, metric), probe(x, metric=metric)
        assert found.recall_axis - found.recall_rotate == pytest.approx(
            measured.recall_axis - measured.recall_rotate, abs=4 * found.error + 0.02
        )
