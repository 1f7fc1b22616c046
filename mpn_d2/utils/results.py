"""Files of measured figures (design section 6): what was run, on what, and what came out."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mpn_d2.utils.files import write_text_atomically


def flat_metrics(results: dict, prefix: str = "") -> dict[str, float | None]:
    """Nested metrics as one dict with names like `unseen/keypoints/AP`."""
    flat: dict[str, float | None] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            flat.update(flat_metrics(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


def write_results(
    path: str | os.PathLike,
    metrics: dict[str, float | None],
    *,
    seconds: float,
    seed: int,
    **extra: Any,
) -> None:
    """Writes a results file, whole or not at all.

    Args:
        path: of the JSON file.
        metrics: flat names to numbers; AP, AR and IoU run from 0 to 100, None is "not defined".
        seconds: that the measured work took.
        seed: that it started from.
        extra: further top-level entries.
    """
    content = {
        **provenance(),
        "seconds": round(seconds, 1),
        "seed": seed,
        "metrics": metrics,
        **extra,
    }
    # NaN is no JSON: an error here is better than a file that others cannot read.
    write_text_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def update_results(
    path: str | os.PathLike,
    group: str,
    metrics: dict[str, float | None],
    *,
    seconds: float,
    seed: int,
    keep: bool = False,
    **extra: Any,
) -> None:
    """Writes the figures of one group into a results file; those of other groups stay.

    Args:
        path: of the JSON file; made where it is missing.
        group: prefix of the names, without a slash at its end.
        metrics, seconds, seed: of this group, see `write_results`.
        keep: other figures of the group stay, too.
        extra: further entries of the group's record under `runs`.

    Raises:
        ValueError: there is a file of another kind.
    """
    file = Path(path)
    content = read_results(path)
    kept = content.get("metrics", {})
    if not keep:
        kept = {name: value for name, value in kept.items() if not name.startswith(f"{group}/")}
    found = {f"{group}/{name}": value for name, value in metrics.items()}
    record = {**provenance(), "seconds": round(seconds, 1), "seed": seed, **extra}
    file.parent.mkdir(parents=True, exist_ok=True)
    runs = {**content.get("runs", {}), group: record}
    write_results(path, {**kept, **found}, seconds=seconds, seed=seed, runs=runs)


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a results file, empty where there is none.

    Raises:
        ValueError: a file that `update_results` cannot add to.
    """
    if not Path(path).is_file():
        return {}
    try:
        content = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no results file ({error}): name another one") from error
    if isinstance(content, dict) and all(
        isinstance(content.get(key, {}), dict) for key in ("metrics", "runs")
    ):
        return content
    raise ValueError(f'{path} is no results file, {{"metrics": {{...}}}}: name another one')


def provenance() -> dict[str, str]:
    """What runs now, on what: `command`, `commit`, `date`, `machine`."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def format_figure(value: float | None, width: int = 6) -> str:
    """A figure with one decimal, right-aligned; "-" where it is not defined."""
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"


def _commit() -> str:
    """Short id of the checked-out commit, "+" added if files differ from it; "" outside git."""
    folder = Path(__file__).resolve().parent
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
