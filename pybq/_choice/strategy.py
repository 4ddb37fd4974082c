"""Axis or rotation: the decision and its reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pybq._choice.fidelity import fidelities
from pybq._choice.probe import Probe, probe, searched
from pybq._choice.statistics import Statistics
from pybq._codes import core
from pybq._codes.metric import Metric, check_metric

# Rotation is chosen unless the axes are ahead, because their mistakes cost differently: what
# statistics of single coordinates cannot see (correlation) makes the axes worse by up to 0.3
# recall@10 and rotation by nothing, and where the two are alike rotation costs nothing but time.
#
# The shape of the values (flat, two-sided) must put the axes ahead by this much. Normalised
# vectors of few effective dimensions have flat coordinates too, and keep them when rotated:
# there the lead is not real, and it is below 0.02 (benchmarks/choice.py: smooth, block-correlated).
MARGIN = 0.02
# The means must put them ahead by this much; less is within 0.01 recall@10 either way.
MEAN_MARGIN = 0.003

# Fewer rows say too little about hundreds of coordinates.
MIN_ROWS = 100


@dataclass(frozen=True)
class Decision:
    """Whether to rotate vectors before they are packed, and why.

    Attributes
    ----------
    rotate : bool
        Rotate, or keep the original axes.
    transform : int
        What to give to `Quantizer` and `bq_encode`: 0 for the original axes.
    f_axis, f_rotate : float
        Predicted fidelity on the original axes and rotated, 0 to 1; NaN if there is nothing
        to predict from (fewer than two rows, or every coordinate constant).
    f_gaussian : float
        As `f_axis`, if the coordinates were Gaussian with the same means and variances: the rest
        is due to the shape of their distribution.
    cv_sigma, sign_entropy : float
        The descriptors of arXiv 2605.17524, as in `Statistics`.
    count : int
        Rows that the statistics have seen.
    reason : str
        Why, in words.
    probe : Probe or None
        Recall measured on a sample, where there was one.
    """

    rotate: bool
    transform: int
    f_axis: float
    f_rotate: float
    f_gaussian: float
    cv_sigma: float
    sign_entropy: float
    count: int
    reason: str
    probe: Probe | None = None


def choose(
    statistics: Statistics,
    probe: Probe | None = None,
    transform: int = 1,
    metric: Metric = "cosine",
) -> Decision:
    """Decide between the original axes and rotation.

    Parameters
    ----------
    statistics : Statistics
        Of the vectors; collected with ``normalize=True`` for cosine distance if their norms
        differ.
    probe : Probe, optional
        What `probe` measured on a sample. It decides if it is clear (`Probe.decisive`);
        otherwise the statistics do.
    transform : int
        Number of the rotation, 1 to 65,535, to use if one is wanted.
    metric : {"cosine", "l2", "inner_product"}
        What is searched by.

    Returns
    -------
    Decision

    Raises
    ------
    ValueError
        If `transform` is outside its range.

    Notes
    -----
    If searches among the vectors (`searched`) found more one way, by more than half the standard
    error of the difference, that way is chosen: they see how coordinates depend on each other. On
    the sets of benchmarks/choice.py half of it loses less than none, one or two. What is left open
    is chosen from single coordinates, with lead = f_axis - f_rotate: keep the
    axes

    - if means put them ahead, f_gaussian - f_rotate > 0.003, lead > 0, and coordinates are
      near enough to Gaussian to believe it, abs(f_axis - f_gaussian) <= 0.02; or
    - if their shape does, lead > 0.02, f_axis - f_gaussian > 0.02, and more than means do.

    and in all other cases rotate. What was tried, and where the rule fails: benchmarks/choice.py.

    Examples
    --------
    >>> import numpy as np
    >>> from pybq import Statistics
    >>> vectors = np.random.default_rng(7).standard_normal((2000, 128))
    >>> uneven = Statistics(128)
    >>> uneven.update(vectors * np.linspace(0.1, 3, 128))
    >>> decision = choose(uneven)
    >>> decision.rotate, decision.transform
    (True, 1)
    >>> print(decision.reason)
    rotate: predicted fidelity 0.964 rotated, 0.924 on the original axes. The coordinates vary
    very differently (CV 0.54), so one threshold does not fit them all; rotation evens them out.
    In windows of at most 1,024 rows, recall@10 was 0.745 rotated and 0.631 on the original axes.
    >>> flat = Statistics(128)
    >>> flat.update(np.tanh(2 * vectors))
    >>> choose(flat).rotate
    False
    """
    check_metric(metric)
    if not 1 <= transform <= core.MAX_TRANSFORM:
        raise ValueError(f"expected transform between 1 and {core.MAX_TRANSFORM}, got {transform}")
    f_axis, f_gaussian, f_rotate = fidelities(statistics)
    if statistics.count < MIN_ROWS or math.isnan(f_axis):
        rotate, reason = True, _reason_unknown(statistics)
    else:
        rotate, reason = _rule(f_axis, f_gaussian, f_rotate, statistics)
    measured = []
    for evidence, where in (
        (searched(statistics, metric), "In windows of at most"),
        (probe, "On a sample of"),
    ):
        if evidence is None:
            continue
        found = (
            f"{where} {evidence.rows:,} rows, recall@{evidence.k} was "
            f"{evidence.recall_rotate:.3f} rotated and {evidence.recall_axis:.3f} on the original "
            "axes."
        )
        difference = evidence.recall_rotate - evidence.recall_axis
        clear = evidence.decisive if evidence is probe else abs(difference) > evidence.error / 2
        if clear and (difference > 0) != rotate:
            rotate = difference > 0
            reason = f"{'rotate' if rotate else 'original axes'}: measured. {found}"
            if not math.isnan(f_axis):
                reason = (
                    f"{reason[:-1]}, although fidelities of {f_rotate:.3f} and {f_axis:.3f} were "
                    "predicted from the coordinates one by one."
                )
        else:
            measured.append(found)
    reason = " ".join([reason, *measured])
    return Decision(
        rotate=rotate,
        transform=transform if rotate else 0,
        f_axis=f_axis,
        f_rotate=f_rotate,
        f_gaussian=f_gaussian,
        cv_sigma=statistics.cv_sigma,
        sign_entropy=statistics.sign_entropy,
        count=statistics.count,
        reason=reason,
        probe=probe,
    )


def choose_by_sample(
    statistics: Statistics, sample: NDArray[Any], metric: Metric = "cosine"
) -> Decision:
    """Decide by statistics, and by a probe of a sample of the vectors if it has rows enough."""
    measured = probe(sample, metric=metric) if len(sample) >= MIN_ROWS else None
    return choose(statistics, measured, metric=metric)


def _rule(
    f_axis: float, f_gaussian: float, f_rotate: float, statistics: Statistics
) -> tuple[bool, str]:
    """Whether to rotate, and the reason; the rule is explained in `choose`."""
    lead = f_axis - f_rotate
    by_mean = f_gaussian - f_rotate
    by_shape = f_axis - f_gaussian
    predicted = f"predicted fidelity {f_rotate:.3f} rotated, {f_axis:.3f} on the original axes."
    if lead > 0 and by_mean > MEAN_MARGIN and abs(by_shape) <= MARGIN:
        return False, (
            f"original axes: {predicted} All vectors share an offset from zero, which the "
            "original axes spread evenly over the coordinates and rotation would not."
        )
    if lead > MARGIN and by_shape > MARGIN and by_shape > by_mean:
        return False, (
            f"original axes: {predicted} Each coordinate takes values that four levels "
            "describe well (flat, or in clear groups); rotation would blur them."
        )
    if lead > -MARGIN:
        return True, (
            f"rotate: {predicted} That is about the same on these coordinates one by one; "
            "rotation is safe where they depend on each other, which the prediction cannot see."
        )
    # what costs the axes most
    if -by_shape > -by_mean:
        cause = (
            "The values are sparse, skewed or heavy-tailed, which four levels describe badly; "
            "rotation blends them into a bell curve."
        )
    elif statistics.cv_sigma > 0.15:
        cause = (
            f"The coordinates vary very differently (CV {statistics.cv_sigma:.2f}), so one "
            "threshold does not fit them all; rotation evens them out."
        )
    else:
        cause = (
            "Some coordinates are far from zero, so that their bits hardly ever change; "
            "rotation spreads what they know over all bits."
        )
    return True, f"rotate: {predicted} {cause}"


def _reason_unknown(statistics: Statistics) -> str:
    if statistics.count < MIN_ROWS:
        return (
            f"rotate: {statistics.count:,} rows are too few to learn from (at least {MIN_ROWS}), "
            "and rotation is the choice that cannot go far wrong."
        )
    return (
        f"rotate: all coordinates are constant in the {statistics.count:,} rows seen, so there is "
        "nothing to learn from them, and rotation is the choice that cannot go far wrong."
    )
