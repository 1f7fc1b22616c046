"""Recall-precision curves of COCO evaluations, as a picture and as numbers (spec 12, E2).

Letters: T thresholds of OKS or IoU, R recalls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pycocotools.cocoeval import COCOeval

from mpn_d2.utils.files import replaced_when_done, write_text_atomically

# What the thresholds are of, by task.
_SIMILARITY = {"keypoints": "OKS", "bbox": "IoU", "segm": "IoU"}
_PANEL = (4.0, 5.0)  # inches, width and height
_DPI = 110
_DECIMALS = 5


@dataclass(frozen=True)
class Curves:
    """Curves of one task.

    Attributes:
        task: keypoints, bbox or segm.
        thresholds: (T,) least OKS or IoU of a hit.
        recall: (R,), 0 to 1.
        precision: sizes of people (all, small, medium, large) that the truth has, to (T, R), 0 to
            1: pycocotools' precision, which never rises with the recall.
    """

    task: str
    thresholds: np.ndarray
    recall: np.ndarray
    precision: dict[str, np.ndarray]

    def average_precision(self, area: str) -> np.ndarray:
        """(T,) COCO's AP at each threshold, 0 to 100."""
        return 100 * self.precision[area].mean(axis=1)

    def to_json(self) -> dict:
        """Plain lists; AP 0 to 100, recall and precision 0 to 1."""
        return {
            "similarity": _SIMILARITY[self.task],
            "thresholds": self.thresholds.round(_DECIMALS).tolist(),
            "recall": self.recall.round(_DECIMALS).tolist(),
            "areas": {
                area: {
                    "AP": self.average_precision(area).round(_DECIMALS).tolist(),
                    "precision": precision.round(_DECIMALS).tolist(),
                }
                for area, precision in self.precision.items()
            },
        }


def curves_of(scorer: COCOeval) -> Curves | None:
    """The curves of an accumulated evaluation of one category; None where there is no truth."""
    params = scorer.params
    precision = {}
    for place, area in enumerate(params.areaRngLbl):
        # (T, R, categories, areas, numbers of detections): the last number is the largest.
        of_area = scorer.eval["precision"][:, :, 0, place, -1]
        if (of_area > -1).all():  # else -1 everywhere: nobody of that size
            precision[area] = of_area
    if not precision:
        return None
    return Curves(params.iouType, np.array(params.iouThrs), np.array(params.recThrs), precision)


def write_curves(path: str | os.PathLike, curves: Mapping[str, Curves]) -> None:
    """Writes a picture, one row a task and one column a size, and its numbers in JSON beside it.

    Args:
        path: of the PNG; the JSON has its name with .json. Missing folders are made.
        curves: by task; of none, nothing is written.
    """
    if not curves:
        return
    figure = _draw(curves)
    with replaced_when_done(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)
    numbers = {task: found.to_json() for task, found in curves.items()}
    text = json.dumps(numbers, allow_nan=False) + "\n"
    write_text_atomically(Path(path).with_suffix(".json"), text)


def _draw(curves: Mapping[str, Curves]) -> Figure:
    columns = max(len(found.precision) for found in curves.values())
    width, height = _PANEL[0] * columns, _PANEL[1] * len(curves)
    figure = Figure(figsize=(width, height))
    # Margins in inches, fixed: a layout that matplotlib finds takes as long as the drawing.
    margins = {
        "left": 0.65 / width,
        "right": 1 - 0.15 / width,
        "bottom": 1.5 / height,
        "top": 1 - 0.35 / height,
        "wspace": 0.2,
        "hspace": 0.65,
    }
    grid = figure.subplots(len(curves), columns, squeeze=False, gridspec_kw=margins)
    for axes_row, (task, found) in zip(grid, curves.items(), strict=True):
        for axes in axes_row[len(found.precision) :]:
            axes.set_axis_off()
        for axes, area in zip(axes_row, found.precision):
            _draw_panel(axes, found, area)
            axes.set_title(f"{task}, {area}: AP {found.average_precision(area).mean():.1f}")
        axes_row[0].set_ylabel("precision")
    return figure


def _draw_panel(axes: Axes, curves: Curves, area: str) -> None:
    # From 0 to 0.9: the last colours are too light on white.
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(curves.thresholds)))
    rows = zip(
        curves.thresholds,
        curves.precision[area],
        curves.average_precision(area),
        colors,
        strict=True,
    )
    for threshold, precision, found, color in rows:
        label = f"{_SIMILARITY[curves.task]} {threshold:.2f}: AP {found:.1f}"
        axes.plot(curves.recall, precision, color=color, lw=1.3, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.grid(alpha=0.3)
    # Below: inside, it would hide curves of strict thresholds.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=7)
