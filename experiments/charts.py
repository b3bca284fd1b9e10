"""The pictures of a report: the rows' errors, their learning curves, and what a label is worth."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.scores import Scores
from experiments.statistics import mean_interval
from experiments.suites import Suite
from training.plots import MaxNLocator, matplotlib, plt


def draw_curves(scores: Mapping[str, Scores]) -> bytes:
    """Draw the validation RMSE by epoch, the mean over the seeds and their range: a PNG."""
    figure, axis = plt.subplots(figsize=(9, max(5, 0.5 + 0.17 * len(scores))), layout="constrained")
    colors = matplotlib.colormaps["tab20"]
    for number, (name, row) in enumerate(scores.items()):
        length = min(len(curve) for curve in row.curves)
        if length == 0:
            continue
        curves = np.array([curve[:length] for curve in row.curves])
        epochs = np.arange(1, length + 1)
        line = ("-", "--", ":")[number // 20 % 3]  # there are twenty colours
        axis.plot(epochs, curves.mean(axis=0), label=name, color=colors(number % 20), linestyle=line)
        axis.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=colors(number % 20))
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation RMSE [m]")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))  # no line is under it
    return _png(figure)


def draw_bars(suite: Suite, scores: Mapping[str, Scores], reference: float | None) -> bytes:
    """Draw each row's RMSE with its interval, and each seed as a point: a PNG."""
    rows = [run.name for run in suite.rows if run.name in scores]
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.34 * len(rows)), layout="constrained")
    controls = set(suite.control.values())
    for place, name in enumerate(reversed(rows)):
        mean = mean_interval(scores[name].errors)
        axis.barh(place, mean.value, color="tab:gray" if name in controls else "tab:blue", alpha=0.7)
        axis.plot([mean.low, mean.high], [place, place], color="black")
        points = scores[name].errors.mean(axis=1)
        axis.plot(points, [place] * len(points), ".", color="black", markersize=4)
    if reference is not None:
        axis.axvline(reference, color="tab:red", linestyle="--", label="mean depth map")
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))  # no bar is under it
    axis.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)
    axis.set_xlabel("test RMSE [m], 95 % interval, seeds; controls in grey")
    return _png(figure)


def draw_label_curves(suite: Suite, scores: Mapping[str, Scores]) -> bytes:
    """Draw the test RMSE by the share of labelled pairs, the mean over the seeds and their range: a PNG."""
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    shares = sorted({share for points in suite.label_curves.values() for share, row in points if row in scores})
    for name, points in suite.label_curves.items():
        known = [(shares.index(share), scores[row].errors.mean(axis=1)) for share, row in points if row in scores]
        if not known:
            continue
        places = [place for place, _ in known]
        (line,) = axis.plot(places, [seeds.mean() for _, seeds in known], "o-", markersize=4, label=name)
        lowest, highest = [seeds.min() for _, seeds in known], [seeds.max() for _, seeds in known]
        axis.vlines(places, lowest, highest, color=line.get_color())
    axis.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
    axis.set_xlabel("training pairs with a label")
    axis.set_ylabel("test RMSE [m]")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _png(figure)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    plt.close(figure)
    return stream.getvalue()
