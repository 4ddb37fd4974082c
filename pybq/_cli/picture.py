"""A picture of how coordinates vary, and of what was decided from it. Needs matplotlib."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path

import numpy as np

from pybq._choice.statistics import Statistics
from pybq._choice.strategy import Decision

_AXIS, _ROTATE = "#3b6fb6", "#d9822b"
_INCHES = (10.0, 5.2)


def draw_advice(
    path: str | os.PathLike[str], statistics: Statistics, decision: Decision, title: str
) -> None:
    """Draw the variance profile, the two fidelities and the decision in words.

    Parameters
    ----------
    path : path
        Ends with ``.png``, ``.svg`` or ``.pdf``.
    statistics : Statistics
        Of the vectors.
    decision : Decision
        What `choose` made of them.
    title : str
        What the vectors are.

    Raises
    ------
    ValueError
        If the ending of the path is none of these.
    ModuleNotFoundError
        If matplotlib is missing.
    """
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"expected a picture .png, .svg or .pdf, got {os.fspath(path)!r}")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing needs matplotlib; run pip install "pybq[plot]"'
        ) from error

    figure = Figure(figsize=_INCHES, layout="constrained")
    profile, bars = figure.subplots(1, 2, width_ratios=(3, 1))

    sigma = np.sort(np.sqrt(statistics.variance))[::-1]
    even = math.sqrt(float(np.mean(sigma**2))) or 1.0
    share = 100 * (np.arange(len(sigma)) + 0.5) / len(sigma)
    profile.fill_between(share, sigma / even, step="mid", color=_AXIS, alpha=0.25, linewidth=0)
    profile.step(share, sigma / even, where="mid", color=_AXIS, label="original axes")
    profile.axhline(1, color=_ROTATE, linestyle="--", label="after rotation: all alike")
    profile.set(
        xlim=(0, 100),
        ylim=(0, max(1.3, 1.08 * float(sigma[0]) / even)),
        xlabel=f"the {statistics.dim:,} coordinates, largest first (%)",
        ylabel="standard deviation\n(1 = root mean square of all)",
        title=f"How the coordinates vary: CV {statistics.cv_sigma:.2f}, "
        f"sign entropy {statistics.sign_entropy:.2f} bit",
    )
    profile.legend(loc="upper right", frameon=False)

    values = [decision.f_axis, decision.f_rotate]
    heights = [0.0 if math.isnan(value) else value for value in values]
    drawn = bars.bar(["original\naxes", "rotated"], heights, color=[_AXIS, _ROTATE], width=0.6)
    bars.bar_label(drawn, ["unknown" if math.isnan(v) else f"{v:.3f}" for v in values], padding=2)
    chosen = drawn[int(decision.rotate)]
    chosen.set(edgecolor="black", linewidth=2)
    bars.set(
        ylim=(0, 1.1),
        yticks=np.arange(0, 1.1, 0.2),
        title="Predicted fidelity",
        ylabel="correlation with true similarity",
    )

    choice, _, why = decision.reason.partition(": ")
    figure.suptitle(
        f"{title}, {statistics.count:,} vectors. Decision: {choice}"
        + (f" (transform {decision.transform})" if decision.rotate else " (transform 0)"),
        fontsize="x-large",
        fontweight="bold",
    )
    figure.supxlabel("\n".join(textwrap.wrap(why[:1].upper() + why[1:], 118)), fontsize="medium")
    for axes in (profile, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
