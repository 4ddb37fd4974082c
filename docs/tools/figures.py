"""The figures of docs/science.md, made from pybq itself: `python figures.py FOLDER`.

Data: the demo's sentences (MiniLM, 384 dimensions), and vectors of the tests (LSA, 256); random
numbers are seeded.  All of it takes some seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

import pybq

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import glosses
from shared import load_lsa

SEED = 20261121
K = 10

# Okabe and Ito: told apart by colour-blind readers, and in grey by their lightness.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#999999"

Array = NDArray[Any]


def levels(axes: list[Axes]) -> None:
    """What a coordinate becomes: thresholds and values, on one of a real vector's scale."""
    x = np.linspace(-3, 3, 1201)
    # a vector whose root mean square is 1: thresholds are relative to that
    rest = np.full(4096, 1.0)
    quantizer = pybq.Quantizer(dim=1 + len(rest), transform=0)
    rows = np.concatenate([x[:, None], np.broadcast_to(rest, (len(x), len(rest)))], axis=1)
    codes = [pybq.Code.from_numpy(code) for code in quantizer.encode(rows.astype(np.float32))]
    level = np.array([code.levels[0] for code in codes])
    decoded = quantizer.decode(np.stack([code.to_numpy() for code in codes]))[:, 0]
    scale = 1.510 / decoded.max()  # Max 1960: the outer value, for a spread of 1

    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    (top, bottom) = axes
    for number, colour in enumerate((ORANGE, "#f0c8a8", "#a8c8e8", BLUE)):
        where = level == number
        top.fill_between(x[where], density[where], color=colour, alpha=0.9, lw=0)
        # of the outer two where the curve still leaves room above the axis
        place = np.clip(x[where].mean(), -1.35, 1.35)
        dark = number in (0, 3)
        top.annotate(
            f"{number:02b}", (place, 0.03), ha="center", color="white" if dark else "black"
        )
    top.plot(x, density, color="black", lw=1)
    top.set(
        ylabel="share of values", title="Two bits: sign and magnitude", xlim=(-3, 3), ylim=(0, None)
    )
    bottom.plot(x, x, color=GREY, lw=1, label="value")
    bottom.step(x, decoded * scale, color=BLUE, lw=2, where="mid", label="what its code stands for")
    bottom.set(xlabel="value of a coordinate, in root mean squares", ylabel="decoded", xlim=(-3, 3))
    bottom.legend(frameon=False)


def found(exact: Array, estimate: Array, depth: int) -> float:
    """Share of the K nearest rows among the `depth` best by an estimate."""
    truth = np.argpartition(-exact, K, axis=1)[:, :K]
    best = np.argpartition(-estimate, depth, axis=1)[:, :depth]
    return float(
        np.mean([len(np.intersect1d(*pair)) / K for pair in zip(truth, best, strict=True)])
    )


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_codes(rows: Array, queries: Array, transform: int) -> Array:
    """Similarity of full queries to what codes stand for."""
    quantizer = pybq.Quantizer(rows.shape[1], transform)
    return queries @ unit(quantizer.decode(quantizer.encode(rows))).T


def signs(rows: Array) -> Array:
    return np.where(rows > 0, 1, -1).astype(np.float32)


def recall(axes: list[Axes]) -> None:
    """What codes alone find, and how many candidates make up for what they miss."""
    depths = (10, 15, 20, 30, 40, 60, 100)
    texts = glosses.load()
    sets = {
        "sentences (MiniLM, 384)": (texts.vectors, texts.queries),
        "words (LSA, 256)": load_lsa(),
    }
    for ax, (name, (rows, queries)) in zip(axes, sets.items(), strict=True):
        rows, queries = unit(rows), unit(queries)
        exact = queries @ rows.T
        ways = {
            "2 bits, rotated": (by_codes(rows, queries, 1), BLUE, "o-"),
            "2 bits, axes": (by_codes(rows, queries, 0), ORANGE, "s-"),
            "1 bit, full query": (queries @ signs(rows).T, GREEN, "v-"),
            "1 bit, query too (Hamming)": (signs(queries) @ signs(rows).T, GREY, "^-"),
        }
        for label, (estimate, colour, style) in ways.items():
            shares = [found(exact, estimate, depth) for depth in depths]
            ax.plot(depths, shares, style, color=colour, label=label, ms=4)
        ax.set(
            title=name,
            xlabel="candidates compared exactly",
            xscale="log",
            ylim=(0.2, 1.02),
        )
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(f"share of the {K} nearest")
    axes[0].legend(frameon=False, loc="lower right", fontsize=10)


def rotation(axes: list[Axes]) -> None:
    """Recall on axes and rotated, as coordinates become uneven, and two-sided."""
    rng = np.random.default_rng(SEED)
    base = rng.standard_normal((3000, 128)).astype(np.float32)
    kinds: list[tuple[str, str, list[float], Callable[[float], Array]]] = [
        (
            "uneven coordinates",
            "unevenness of their spreads, CV(σ)",
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
            # the spread of an even grid is its half width over the root of 3
            lambda cv: base * np.linspace(1 - cv * 3**0.5, 1 + cv * 3**0.5, 128, dtype=np.float32),
        ),
        (
            "two-sided coordinates",
            "steepness s of tanh(s x), 0: x itself",
            [0.0, 1.0, 1.5, 2.0, 3.0],
            lambda steepness: np.tanh(base * steepness) if steepness else base,
        ),
    ]
    for ax, (title, label, values, make) in zip(axes, kinds, strict=True):
        measured = [pybq.probe(make(value), metric="cosine", seed=SEED) for value in values]
        ax.plot(values, [m.recall_rotate for m in measured], "o-", color=BLUE, label="rotated")
        ax.plot(values, [m.recall_axis for m in measured], "s-", color=ORANGE, label="axes")
        ax.set(title=title, xlabel=label, ylim=(0.5, 0.8))  # one scale for both
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    axes[0].set_ylabel("recall@10 of codes alone")


FIGURES: dict[str, tuple[Callable[[list[Axes]], None], tuple[int, int]]] = {
    "levels": (levels, (2, 1)),
    "recall": (recall, (1, 2)),
    "rotation": (rotation, (1, 2)),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    for name, (draw, (rows, columns)) in FIGURES.items():
        figure, axes = plt.subplots(rows, columns, figsize=(6.8, 5.2 if rows > 1 else 3.4))
        draw(list(np.atleast_1d(axes)))
        figure.tight_layout()
        # without a date, the same numbers are the same file
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
