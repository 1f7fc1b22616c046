"""Picture of the time of an image against the number of people in it."""

from __future__ import annotations

import os
from collections import defaultdict

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mpn_d2.utils.files import replaced_when_done


def speed_lines(figures: dict[str, float | None]) -> dict[str, list[tuple[int, float]]]:
    """ "system, mode" to (people, seconds) in the order of people, of figures named
    seconds/<system>/<people>/<mode>; those that are not available are left out."""
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for name, value in figures.items():
        first, *rest = name.split("/")
        if first == "seconds" and len(rest) == 3 and value is not None:
            system, people, mode = rest
            lines[f"{system}, {mode}"].append((int(people), value))
    return {name: sorted(points) for name, points in lines.items()}


def plot_speed(figures: dict[str, float | None], path: str | os.PathLike) -> None:
    """Writes the picture as PNG, whole or not at all.

    Raises:
        ValueError: no figures of seconds by people.
    """
    lines = speed_lines(figures)
    if not lines:
        raise ValueError(f"{path}: no figures seconds/<system>/<people>/<mode> to draw")
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="people in the image", ylabel="seconds an image", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replaced_when_done(path) as partial:
        figure.savefig(partial, format="png")
