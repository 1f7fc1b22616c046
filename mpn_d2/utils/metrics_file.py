"""Reading metrics.json, which Detectron2 appends to through kills, resumes and new beginnings."""

from __future__ import annotations

import json
import os
from pathlib import Path

METRICS = "metrics.json"
# Scalar written once at the begin of a run, with the iteration that it starts at.
START = "start_iteration"


def read_metrics(path: str | os.PathLike) -> dict[str, list[tuple[int, float]]]:
    """Curves of a run: name to (iteration, value) in order of iterations.

    A resumed run repeats the iterations after its checkpoint: the last value written counts.
    What an earlier run wrote beyond the iteration at which a later one began is left out.

    Args:
        path: one JSON object a line, as Detectron2's JSONWriter writes them; a last line that is
            not finished (a run that goes on, or was killed) is left out, NaN values as well.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no values, or a line before the last is no JSON object with an
            iteration; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: a folder that a training wrote is needed")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    values: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None:
            # Only what follows the last line feed can be half written.
            if number == len(lines):
                break
            # A kill in the middle of a line, then a resumed run that began on the same line.
            record = _parse(line[line.rfind("{") :])
        if record is None:
            raise ValueError(f"{path}, line {number}: not a JSON object with an iteration")
        iteration = int(record.pop("iteration"))
        if START in record:
            start = int(record.pop(START))
            # The evaluation after the last iteration is filed under the next one's number.
            values = {i: v for i, v in values.items() if 0 < start and i <= start}
        row = values.setdefault(iteration, {})
        row.update({k: v for k, v in record.items() if _is_number(v)})
    curves: dict[str, list[tuple[int, float]]] = {}
    for iteration in sorted(values):
        for name, value in values[iteration].items():
            curves.setdefault(name, []).append((iteration, float(value)))
    if not curves:
        raise ValueError(
            f"{path} holds no values yet: Detectron2 writes every 20 iterations and at the end"
        )
    return curves


def _parse(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and _is_number(record.get("iteration")) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
