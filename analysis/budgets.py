"""Which rows share a compute budget? Those whose achieved compute is closer than the gaps between
budgets.

A sweep's runs come within 1 % of their target, so sorted log C has narrow groups and wide gaps.
Where it has not (measurements of others, compute spread evenly) there are no budgets; bands of
equal width in log C then serve for stratified resampling and hold-outs, and no valley is fitted
to them.
"""

from dataclasses import dataclass

import numpy as np

GAP = np.log(1.15)  # between neighbours of two budgets; a sweep's budgets are a factor of 3 apart
WIDTH = np.log(1.25)  # of one budget, smallest to largest
BANDS = 5  # where compute is continuous: guess, leaves a back-test four steps


@dataclass(frozen=True)
class Budgets:
    """`label_M` is each row's budget, 0 the smallest; `flops` the geometric mean compute of
    each."""

    label_M: np.ndarray
    flops: np.ndarray
    are_bands: bool  # compute is continuous: no budgets in the sense of an isoFLOP sweep

    @property
    def count(self) -> int:
        return len(self.flops)


def budgets(C: np.ndarray) -> Budgets:
    """Cluster M achieved FLOPs into budgets: neighbours more than 15 % apart begin a new one."""
    log_C = np.log(C)
    order = np.argsort(log_C, kind="stable")
    sorted_C = log_C[order]
    label = np.empty(len(C), int)
    label[order] = np.concatenate([[0], np.cumsum(np.diff(sorted_C) > GAP)])
    widths = [np.ptp(log_C[label == k]) for k in range(label.max() + 1)]
    # a sweep has several runs at a budget
    are_bands = max(widths) > WIDTH or np.median(np.bincount(label)) < 2
    if are_bands:
        edges = np.linspace(sorted_C[0], sorted_C[-1], BANDS + 1)[1:-1]
        label = np.unique(np.searchsorted(edges, log_C), return_inverse=True)[1]
    flops = np.array([np.exp(log_C[label == k].mean()) for k in range(label.max() + 1)])
    return Budgets(label, flops, bool(are_bands))
