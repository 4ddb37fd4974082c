"""Predicted against measured: fidelity and recall of the original axes and of rotation.

    python benchmarks/choice.py                       # generated families
    python benchmarks/choice.py --data FOLDER         # and the sets NAME.npz there
    python benchmarks/choice.py --metric l2 --only shift --dims 64 1024

FOLDER holds int8 rows with a float32 scale per row (base, base_scale, queries, queries_scale).
Families of pictures are added where scikit-image is installed. Each line is one set:

    CV H          CV(sigma) and mean sign entropy
    F pred, meas  fidelity: from diagonal statistics, and the mean correlation within a query
    windows       what searches found while the statistics were collected: rotated less axes, and
                  the standard error of that
    recall@10     from codes alone, and the standard error of the difference
    cost          recall lost by the choice against the better of the two

The last table compares the rule of pybq.choose with simpler ones.

Recall lost on these sets by what is chosen from the statistics of 4,000 rows (all families, 64 to
1,024 dimensions for cosine, 64 and 256 for l2, each set in three orders; standard error of each
.01):

    cosine, 405 choices    lost > .01  > .02  > .03   sum   worst
    coordinates alone              39     18     12   1.25   .100
    with searches                  25      9      3    .60   .057
    l2, 276 choices
    coordinates alone              30     15     12    .97   .086
    with searches                  21      8      7    .57   .052

Of one run (cosine, 256 dimensions, 300 queries, 49 sets) searches lose more than .01 on two sets,
.028 at worst and .05 in all, as a probe of 2,000 raw rows does; coordinates alone on five, .12.

- Image gradients (HOG) and corners of 256 dimensions are chosen right now. What is left is chance,
  as 64 searches have a standard error of .02, and neighbours that are much nearer in 4,000 rows
  than in the 1,024 of a window: corners of 64 dimensions.
- Windows of 512 rows cost less and mislead for clusters of a hundredth of the rows (corners, by
  .1); with 2,048 rows `Statistics.update` takes a third longer, and as much is lost.
- Correlations of estimate and truth among the nearest rows of a sample, in place of what is found,
  did no better than found rows with as many pairs, and are harder to explain.
- Half a standard error as the threshold loses .60 (cosine); none .72, one .79.

Of coordinates alone (before there were searches):

- A margin of 0.02 in favour of the axes costs up to 0.08 recall on Gaussian data that is only a
  little uneven (log-normal 0.15) or correlated in blocks. Where the formula sees a tie, rotation
  is never worse but may be better, so ties go to rotation.
- Correlated neighbours (blocks, smooth curves, random walks, pixels) lose up to 0.4 on the axes,
  and single coordinates cannot show it.
- A common offset makes the axes better, by up to 0.09 on independent coordinates; the mean term of
  fidelity.py predicts it. In real data of large mean (pixels, HOG) correlation outweighs it: the
  rule believes the mean only where coordinates look Gaussian otherwise.
- It fails where the nearest neighbours differ from each other in another way than rows in
  general do: tight clusters around corners of a cube or around sparse centres (0.02 to 0.09),
  latent factors with an offset of several sigma (up to 0.05). Searches and `probe` see these.
- The formula is for vectors of one norm. Inner product of vectors whose norms vary along a large
  offset is not that ("3 offsets of 20": 0.39 lost); searches see it.
- Data of four directions or fewer lose 0.01 to 0.02 by rotation, by a Haar-random one as well
  (low rank 4; two blocks of 0.5 x 32).
"""

from __future__ import annotations

import argparse
import math
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

import pybq
from pybq._choice.probe import probe, searched
from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision, choose

Array = NDArray[np.float64]
Family = Callable[[np.random.Generator, int, int], Array]

FAMILIES: dict[str, Family] = {}


def family(name: str) -> Callable[[Family], Family]:
    def add(make: Family) -> Family:
        FAMILIES[name] = make
        return make

    return add


# -- Gaussian ---------------------------------------------------------------------------


def scaled(name: str, sigma: Callable[[np.random.Generator, int], Array]) -> None:
    FAMILIES[name] = lambda rng, n, dim: rng.standard_normal((n, dim)) * sigma(rng, dim)


def shifted(name: str, mean: Callable[[np.random.Generator, int], Array | float]) -> None:
    FAMILIES[name] = lambda rng, n, dim: rng.standard_normal((n, dim)) + mean(rng, dim)


def low_rank(rng: np.random.Generator, n: int, dim: int, rank: int) -> Array:
    factors = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dim))
    return factors / math.sqrt(rank) + 0.1 * rng.standard_normal((n, dim))


def blocks(rng: np.random.Generator, n: int, dim: int, rho: float, size: int) -> Array:
    common = np.repeat(rng.standard_normal((n, -(-dim // size))), size, axis=1)[:, :dim]
    return math.sqrt(rho) * common + math.sqrt(1 - rho) * rng.standard_normal((n, dim))


def gaussian_families() -> None:
    scaled("isotropic", lambda rng, dim: np.ones(dim))
    for power in (0.25, 0.5, 1.0):
        scaled(f"power law {power}", lambda rng, dim, p=power: np.arange(1, dim + 1) ** -p)
    for s in (0.15, 0.3, 0.6, 1.0):
        scaled(f"log-normal {s}", lambda rng, dim, s=s: np.exp(s * rng.standard_normal(dim)))
    for m in (0.3, 1, 3):
        shifted(f"shift all {m}", lambda rng, dim, m=m: m)
        shifted(f"shift random {m}", lambda rng, dim, m=m: m * rng.standard_normal(dim))
    for rank in (4, 8, 32):
        FAMILIES[f"low rank {rank}"] = lambda rng, n, dim, r=rank: low_rank(rng, n, dim, r)
    FAMILIES["low rank 32, shift 1"] = lambda rng, n, dim: low_rank(rng, n, dim, 32) + 1
    for rho, size in ((0.5, 8), (0.9, 8), (0.5, 32), (0.9, 32)):
        FAMILIES[f"blocks {rho} x {size}"] = lambda rng, n, dim, rho=rho, size=size: blocks(
            rng, n, dim, rho, size
        )


# -- other ------------------------------------------------------------------------------


@family("uniform")
def _uniform(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.uniform(-1, 1, (n, dim))


@family("uniform 0 to 1")
def _uniform01(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.uniform(0, 1, (n, dim))


@family("signs of 16 factors")
def _signs(rng: np.random.Generator, n: int, dim: int) -> Array:
    return np.sign(low_rank(rng, n, dim, 16))


@family("tanh of 32 factors")
def _tanh(rng: np.random.Generator, n: int, dim: int) -> Array:
    return np.tanh(2 * low_rank(rng, n, dim, 32))


@family("sigmoid of 32 factors")
def _sigmoid(rng: np.random.Generator, n: int, dim: int) -> Array:
    return 1 / (1 + np.exp(-2 * low_rank(rng, n, dim, 32)))


@family("ReLU of 32 factors")
def _relu(rng: np.random.Generator, n: int, dim: int) -> Array:
    return np.maximum(0, low_rank(rng, n, dim, 32))


@family("Laplace")
def _laplace(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.laplace(size=(n, dim))


@family("Student t, 3")
def _student(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.standard_t(3, size=(n, dim))


@family("gamma 2")
def _gamma(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.gamma(2, size=(n, dim))


@family("exponential, mixed scales")
def _exponential(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.exponential(size=(n, dim)) * np.exp(0.7 * rng.standard_normal(dim))


@family("one in 16 x 10")
def _mixed(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.standard_normal((n, dim)) * np.where(np.arange(dim) % 16 == 0, 10, 1)


@family("3 offsets of 20")
def _rogue(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.standard_normal((n, dim)) + np.where(np.arange(dim) < 3, 20, 0)


@family("half constant")
def _constant(rng: np.random.Generator, n: int, dim: int) -> Array:
    live = np.arange(dim) < dim // 2
    return np.where(live, rng.standard_normal((n, dim)), 0.5)


@family("sparse 10 %")
def _sparse(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.standard_normal((n, dim)) * (rng.uniform(size=(n, dim)) < 0.1)


@family("bag of words")
def _words(rng: np.random.Generator, n: int, dim: int) -> Array:
    topics = rng.dirichlet(np.full(dim, 0.05), size=20) / np.arange(1, dim + 1) ** 0.8
    shares = rng.dirichlet(np.full(20, 0.2), size=n) @ topics
    return rng.multinomial(60, shares / shares.sum(1, keepdims=True)).astype(np.float64)


@family("categories, 8 each")
def _categories(rng: np.random.Generator, n: int, dim: int) -> Array:
    return np.eye(8)[rng.integers(8, size=(n, dim // 8))].reshape(n, -1)


@family("clusters 100, 0.5")
def _clusters(rng: np.random.Generator, n: int, dim: int) -> Array:
    centres = rng.standard_normal((100, dim))
    return centres[rng.integers(100, size=n)] + 0.5 * rng.standard_normal((n, dim))


@family("clusters at corners, 0.2")
def _corners(rng: np.random.Generator, n: int, dim: int) -> Array:
    centres = np.sign(rng.standard_normal((100, dim)))
    return centres[rng.integers(100, size=n)] + 0.2 * rng.standard_normal((n, dim))


@family("clusters, sparse centres")
def _sparse_centres(rng: np.random.Generator, n: int, dim: int) -> Array:
    centres = rng.standard_normal((100, dim)) * (rng.uniform(size=(100, dim)) < 0.1)
    return centres[rng.integers(100, size=n)] + 0.1 * rng.standard_normal((n, dim))


@family("random walk")
def _walk(rng: np.random.Generator, n: int, dim: int) -> Array:
    return np.cumsum(rng.standard_normal((n, dim)), axis=1)


@family("smooth curves")
def _smooth(rng: np.random.Generator, n: int, dim: int) -> Array:
    grid = np.pi * np.arange(dim) / dim
    phases = rng.uniform(0, 2 * np.pi, (19, n, 1))
    heights = rng.standard_normal((19, n, 1))
    waves = [heights[k] / (k + 1) * np.sin((k + 1) * grid + phases[k]) for k in range(19)]
    return np.sum(waves, axis=0)


def picture_families() -> None:
    """Patches of the pictures that come with scikit-image: HOG and pixels."""
    try:
        from skimage import color, data
        from skimage.feature import hog
    except ImportError:
        print("no scikit-image: families of pictures left out")
        return
    pictures = []
    for name in ("astronaut", "camera", "coins", "page", "text", "moon", "coffee", "brick"):
        picture = np.asarray(getattr(data, name)(), np.float64) / 255
        pictures.append(color.rgb2gray(picture) if picture.ndim == 3 else picture)

    def patches(rng: np.random.Generator, n: int, side: int) -> Iterator[Array]:
        for _ in range(n):
            picture = pictures[rng.integers(len(pictures))]
            y, x = (rng.integers(size - side) for size in picture.shape)
            yield picture[y : y + side, x : x + side]

    FAMILIES["HOG of patches, 324"] = lambda rng, n, dim: np.stack(
        [hog(patch, 9, (8, 8), (2, 2)) for patch in patches(rng, n, 32)]
    )
    FAMILIES["HOG of patches, 900"] = lambda rng, n, dim: np.stack(
        [hog(patch, 9, (8, 8), (2, 2)) for patch in patches(rng, n, 48)]
    )
    FAMILIES["pixels of patches, 256"] = lambda rng, n, dim: np.stack(
        [patch.ravel() for patch in patches(rng, n, 16)]
    )


def stored_families(folder: pathlib.Path) -> None:
    for path in sorted(folder.glob("*.npz")):

        def load(rng: np.random.Generator, n: int, dim: int, path: pathlib.Path = path) -> Array:
            with np.load(path) as file:
                vectors = file["base"] * file["base_scale"][:, None].astype(np.float64)
            return vectors[np.sort(rng.permutation(len(vectors))[:n])]

        FAMILIES[f"file {path.stem}"] = load


# -- measuring --------------------------------------------------------------------------


def measure(
    base: NDArray[np.float32], queries: NDArray[np.float32], metric: str, transform: int
) -> tuple[float, Array]:
    """Mean correlation within a query, and recall@10 of each query, by codes alone."""
    quantizer = pybq.Quantizer(base.shape[1], transform)
    decoded = quantizer.decode(quantizer.encode(base)).astype(np.float64)
    rows, asked = base.astype(np.float64), queries.astype(np.float64)
    truth, estimate = asked @ rows.T, asked @ decoded.T
    fidelity = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(truth, estimate, strict=True)])
    if metric == "l2":
        squares = np.einsum("ij,ij->i", rows, rows)
        truth, estimate = 2 * truth - squares, 2 * estimate - squares
    reach = np.partition(truth, -10, axis=1)[:, -10] - 1e-9 * np.abs(truth).max()
    # equal codes are ranked at random
    estimate *= 1 + 1e-9 * np.random.default_rng(0).standard_normal(estimate.shape)
    nearest = np.argpartition(-estimate, 9, axis=1)[:, :10]
    found = np.take_along_axis(truth, nearest, axis=1) >= reach[:, None]
    return float(fidelity), found.mean(axis=1)


RULES: dict[str, Callable[[Decision], bool]] = {
    "pybq.choose": lambda d: d.rotate,
    "larger fidelity": lambda d: d.f_rotate > d.f_axis,
    "rotation ahead by 0.02": lambda d: d.f_rotate > d.f_axis + 0.02,
    "always rotate": lambda d: True,
    "never rotate": lambda d: False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--metric", default="cosine", choices=["cosine", "l2", "inner_product"])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of the families to run")
    args = parser.parse_args()

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"{platform.machine()}, kernel {pybq.simd()}, commit {commit or 'unknown'}")
    print(f"{args.rows} rows, {args.queries} queries, {args.metric}, seed {args.seed}")
    gaussian_families()
    picture_families()
    if args.data:
        stored_families(args.data)

    print(
        f"{'set':25} {'dim':>4}  CV   H   | F axis pred meas | F rot  pred meas |"
        " windows  +-  | recall@10 axis  rot   +-  | choice cost"
    )
    losses: dict[str, list[float]] = {
        name: [] for name in ("with a probe", "coordinates alone", *RULES)
    }
    for name, make in FAMILIES.items():
        if args.only not in name:
            continue
        fixed = name.startswith(("file ", "HOG ", "pixels "))
        for dim in [0] if fixed else args.dims:
            rng = np.random.default_rng(args.seed)
            vectors = make(rng, args.rows + args.queries, dim)
            vectors = vectors[np.abs(vectors).max(axis=1) > 0]
            if args.metric == "cosine":
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = rng.permutation(vectors).astype(np.float32)
            queries, base = vectors[: args.queries], vectors[args.queries :]

            statistics = Statistics(base.shape[1], normalize=args.metric == "cosine")
            statistics.update(base)
            d = choose(statistics, metric=args.metric)
            alone = Statistics(base.shape[1], args.metric == "cosine", search=False)
            alone.update(base)
            found = searched(statistics, args.metric)
            assert found is not None
            f_axis, axis = measure(base, queries, args.metric, 0)
            f_rotate, rotated = measure(base, queries, args.metric, 1)
            error = (rotated - axis).std() / math.sqrt(len(axis))
            best = max(axis.mean(), rotated.mean())
            for rule, rotates in RULES.items():
                losses[rule].append(best - (rotated if rotates(d) else axis).mean())
            rotates_alone = choose(alone).rotate
            losses["coordinates alone"].append(best - (rotated if rotates_alone else axis).mean())
            probed = choose(statistics, probe(base, metric=args.metric), metric=args.metric)
            losses["with a probe"].append(best - (rotated if probed.rotate else axis).mean())
            cost = losses["pybq.choose"][-1]
            print(
                f"{name:25} {base.shape[1]:4} {d.cv_sigma:4.2f} {d.sign_entropy:4.2f} |"
                f"        {d.f_axis:.3f} {f_axis:.3f}|        {d.f_rotate:.3f} {f_rotate:.3f}|"
                f"  {found.recall_rotate - found.recall_axis:+.3f} {found.error:.3f}|"
                f"           {axis.mean():.3f} {rotated.mean():.3f} {error:.3f}|"
                f" {'rotate' if d.rotate else 'axis  '} {cost:.3f}"
                f"{' *' if cost > 0.01 + 2 * error else ''}",
                flush=True,
            )
    print("\n* more than 0.01 beyond twice the standard error\n")
    print(f"{'rule':25} sets  cost > 0.01  > 0.03   sum   worst")
    for rule, values in losses.items():
        loss = np.array(values)
        print(
            f"{rule:25} {len(loss):4}  {(loss > 0.01).sum():11}  {(loss > 0.03).sum():6}"
            f"  {loss.sum():5.2f}  {loss.max():.3f}"
        )


if __name__ == "__main__":
    main()
