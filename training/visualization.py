"""Pictures: what a network saw, what it should have said, what it said, and by how much it was wrong."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dataloaders.transforms import SAMPLE_RATE
from training.files import write_whole, writing
from training.plots import MaxNLocator, matplotlib, plt

DEPTH_COLORS = matplotlib.colormaps["turbo"].with_extremes(bad="0.75")  # grey: no measurement
ERROR_COLORS = matplotlib.colormaps["magma"].with_extremes(bad="0.75")
ECHO_COLORS = matplotlib.colormaps["viridis"]
SIDE_COLORS = matplotlib.colormaps["RdBu_r"]  # red where the ears agree, blue where they are opposed

NAMES = ("truth", "audio", "RGB")  # of the curves of bins (without the truth) and histograms
COLORS = ("black", "tab:blue", "tab:orange")

HEADING = 26  # characters in a line of a column's heading

Column = tuple[str, str, list[Tensor]]  # title; a kind that save_grid knows; one map per row


def save_grid(
    path: Path, columns: list[Column], row_titles: list[str], title: str = "", sound: Mapping[str, Any] | None = None
) -> None:
    """Save a grid of maps, one row per sample.

    Args:
        path: where the PNG goes, whole or not at all.
        columns: title, kind and the maps of each column. ``rgb`` is [3, H, W] in [0, 1]; ``audio`` [C, H, W] shows the
            left ear beside the right one, time to the right, frequency upwards, and beside them the mean of further
            maps, in which both ears are correlated, range downwards, from the left to the right; ``depth`` and
            ``error`` are [1, H, W] in metres, where 0 (for an error: NaN) is no measurement; ``disparity`` is [1, H, W]
            without a unit. The depth maps of a row share one scale, the errors of the picture another, each disparity
            has its own.
            ``bins`` [2, N + 1] shows the edges of the bins of ear and eye in metres (NaN: there is no such network),
            ``histogram`` [3, P] how often each depth occurs in the truth, to the ear and to the eye (0: not measured).
        row_titles: one per row.
        title: of the whole picture.
        sound: the ``preprocessing`` of what is heard, from which the axes of the spectrograms follow; None draws none.

    Raises:
        OptionError: the disk is full or not writable.
    """
    rows = len(row_titles)
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(2.5 * len(columns) + 0.6, 2.3 * rows + 0.5), squeeze=False, layout="constrained"
    )
    worst = max((_high(m, 98) for _, kind, maps in columns if kind == "error" for m in maps), default=1.0)
    for row in range(rows):
        depths = [maps[row] for _, kind, maps in columns if kind == "depth"]
        deepest = max((_high(m, 100) for m in depths), default=1.0)
        for column, (heading, kind, maps) in enumerate(columns):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            _draw(figure, axis, kind, maps[row], worst if kind == "error" else deepest)
            if kind == "audio" and sound is not None:
                _scale_ears(axis, maps[row].shape, sound)
            if row == 0:
                axis.set_title(wrap_heading(heading), fontsize=9)
        axes[row, 0].set_ylabel("\n".join(filter(None, (row_titles[row], axes[row, 0].get_ylabel()))), fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def wrap_heading(heading: str) -> str:
    """Break a heading into lines, between words, or between the words of a name that underscores join."""
    lines = textwrap.wrap(heading.replace("_", "_ "), HEADING, break_long_words=False)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _draw(figure: Any, axis: Any, kind: str, values: Tensor, high: float) -> None:
    array = values.detach().float().cpu().numpy()
    if kind == "rgb":
        axis.imshow(array.transpose(1, 2, 0).clip(0, 1))
    elif kind == "audio":
        _draw_ears(axis, array)
    elif kind == "bins":
        _draw_bins(axis, array)
    elif kind == "histogram":
        _draw_histogram(axis, array, high)
    elif kind == "disparity":
        drawn = axis.imshow(array[0], cmap=DEPTH_COLORS.reversed())  # near things in the colours of near depths
        _draw_bar(figure, axis, drawn).set_ticks(drawn.get_clim(), labels=("far", "near"))
    else:
        invalid = array[0] <= 0 if kind == "depth" else np.isnan(array[0])
        colors = DEPTH_COLORS if kind == "depth" else ERROR_COLORS
        drawn = axis.imshow(np.ma.masked_where(invalid, array[0]), vmin=0, vmax=high, cmap=colors)
        _draw_bar(figure, axis, drawn).ax.set_xlabel(f"{kind} [m]", fontsize=7)  # upright, below the bar


def _draw_bar(figure: Any, axis: Any, drawn: Any) -> Any:
    """Draw a colour bar beside a map."""
    bar = figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    return bar


def lift_echoes(ears: np.ndarray) -> tuple[np.ndarray, float]:
    """Lift faint late echoes in spectrograms [2, H, W], as the loud chirp hides them: what is drawn, and its top."""
    lifted = np.log1p(10 * ears)
    return lifted, max(float(np.percentile(lifted, 99.5)), 1e-3)


def _draw_ears(axis: Any, heard: np.ndarray) -> None:
    """Draw the spectrograms, the first two maps of [C, H, W], side by side, and the mean of the others beside them."""
    lifted, top = lift_echoes(heard[:2])
    panels = [ECHO_COLORS(ear / top) for ear in lifted]  # [H, W, 4] each
    if len(heard) > 2:
        sides = heard[2:].mean(axis=0)[::-1]  # rows are drawn upwards
        panels.append(SIDE_COLORS(0.5 + sides / (2 * max(float(np.percentile(np.abs(sides), 99)), 1e-3))))
    axis.imshow(np.concatenate(panels, axis=1), aspect="auto", origin="lower")
    axis.set_box_aspect(heard.shape[-2] / heard.shape[-1])
    for place, name in enumerate(("left", "right", "by side")[: len(panels)]):
        color = "white" if place < 2 else "black"
        spot = (place + 0.04) / len(panels)
        axis.text(spot, 0.97, name, transform=axis.transAxes, color=color, fontsize=7, va="top")
        axis.axvline((place + 1) * heard.shape[-1] - 0.5, color="white", linewidth=1)


def _scale_ears(axis: Any, shape: Sequence[int], sound: Mapping[str, Any]) -> None:
    """Draw time [ms], where the recording is cut at one, and frequency [kHz] beside the spectrograms of [C, H, W]."""
    channels, height, width = shape
    top = SAMPLE_RATE / 2000  # kHz
    if sound["audio_format"] == "mel":
        share = {f: math.log1p(f / 0.7) / math.log1p(top / 0.7) for f in (0, 1, 5, 20)}  # of HTK's scale
    else:
        share = {f: f / top for f in (0, 10, 20)}
    axis.set_yticks([place * height - 0.5 for place in share.values()], labels=[f"{f}" for f in share], fontsize=6)
    axis.set_ylabel("frequency [kHz]", fontsize=7)
    if sound["audio_samples"] is None:
        return
    lasts = 1000 * sound["audio_samples"] / SAMPLE_RATE  # ms
    ticks = MaxNLocator(4 if channels == 2 else 2, steps=[1, 2, 5, 10])
    times = [t for t in ticks.tick_values(0, lasts) if 0 <= t < 0.9 * lasts]
    places = [(ear + t / lasts) * width - 0.5 for ear in (0, 1) for t in times]
    axis.set_xticks(places, labels=[f"{t:g}" for t in 2 * times], fontsize=6)
    axis.set_xlabel("time [ms]", fontsize=7)


def _draw_bins(axis: Any, edges: np.ndarray) -> None:
    """Draw the edges of the bins of ear and eye [2, N + 1] as ticks, a row for each that is there; NaN is no edge."""
    there = [(row, name, color) for row, name, color in zip(edges, NAMES[1:], COLORS[1:], strict=True) if row[0] >= 0]
    for place, (row, name, color) in enumerate(there):
        axis.eventplot(row, lineoffsets=place, linelengths=0.7, linewidths=0.5, colors=color)
        said = f"{name}: {np.isfinite(row).sum() - 1} bins"
        axis.text(0.02, place + 0.38, said, transform=axis.get_yaxis_transform(), fontsize=7)
    low, top = np.nanmin(edges), np.nanmax(edges)
    axis.set_xlim(low, top)
    axis.set_ylim(-0.6, len(there) - 0.2)
    axis.set_xlabel(f"{low:.1f} to {top:.1f} m", fontsize=7)


def _draw_histogram(axis: Any, depths: np.ndarray, high: float) -> None:
    """Draw how often each depth occurs in the truth, to the ear and to the eye [3, P]; 0 is not measured."""
    for values, name, color in zip(depths, NAMES, COLORS, strict=True):
        if (values > 0).any():
            axis.hist(
                values[values > 0], bins=40, range=(0, high), histtype="step", density=True, label=name, color=color
            )
    axis.set_ylim(top=1.25 * axis.get_ylim()[1])  # the legend lies above the lines
    axis.legend(fontsize=6, loc="upper center", ncols=len(NAMES), frameon=False, handlelength=1, columnspacing=1)
    axis.set_xlabel(f"0 to {high:.1f} m", fontsize=7)


def _high(values: Tensor, percentile: float) -> float:
    array = values.detach().float().cpu().numpy()
    finite = array[np.isfinite(array)]
    return max(float(np.percentile(finite, percentile)), 1e-3) if finite.size else 1.0


def error_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Return |prediction - target| [1, H, W] in metres, NaN where the target has no measurement."""
    return (prediction - target).abs().where(target > 0, math.nan)


def save_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Save the curves of ``metrics.csv``: the training loss with its parts, and what validation metrics there are.

    Raises:
        OptionError: the disk is full or not writable.
    """
    if not rows:
        return
    epochs = [row["epoch"] for row in rows]
    panels = {
        "training loss and its parts": list(
            dict.fromkeys(key for row in rows for key in row if key.startswith("train_"))
        ),
        "validation, distance from the teacher": ["val_distance"],
        "validation error [m]": ["val_rmse", "val_mae"],
        "validation, relative": ["val_abs_rel", "val_log10"],
        "validation accuracy": ["val_delta1", "val_delta2", "val_delta3"],
    }
    known = {key for row in rows for key in row}
    panels = {title: there for title, keys in panels.items() if (there := [key for key in keys if key in known])}
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axis, (title, keys) in zip(axes[0], panels.items(), strict=True):
        for key in keys:
            values = [row.get(key, math.nan) for row in rows]
            axis.plot(epochs, values, marker="." if len(rows) < 40 else None, label=key.split("_", 1)[1])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # no line is under it
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as file:
                figure.savefig(file, format="png", dpi=80)
    finally:
        plt.close(figure)
