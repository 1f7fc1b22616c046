"""Tables of docs/performance.md from the files that tools/benchmark.py and performance.py write.

Times are in ms, ratios and shares in percent.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpn_d2.utils.doc_tables import markdown_table

PLAIN = "plain"
# Column heads of the accuracy table and the names of their figures.
SCORES = {"keypoint AP": "keypoints/AP", "box AP": "bbox/AP", "person IoU": "sem_seg/IoU-person"}
# Number type of each mode's convolutions, where the machine's rate bounds it.
_BOUND = {"fp32": "float32", "half": "bfloat16"}
_GPU_BOUND = {"fp32": "float32", "half": "float16"}
Metrics = dict[str, float | None]
# Issue 7's targets: most percent of Keypoint R-CNN's time, by people and mode of the main system
# and of the light one; of its own time at one person at fifty; of Keypoint R-CNN's memory.
_MOST_TIME = {(1, "fp32"): 100.0, (5, "fp32"): 80.0, (20, "fp32"): 50.0, (20, "fastest"): 25.0}
_MOST_LIGHT = {(20, "fp32"): 10.0}
_MOST_GROWTH, _MOST_MEMORY = 110.0, 100.0


def speed_tables(system: str, metrics: Metrics) -> dict[str, str]:
    """All tables of one results file of tools/benchmark.py by name (people_<system> ...); those
    without figures are left out.

    Args:
        system: the config's name in the figures.
        metrics: of the file, by name.
    """
    against = next(
        (n.split("/")[1] for n in metrics if _is(n, "seconds", 3) and n.split("/")[1] != system), ""
    )
    found = {
        "people": _people(system, against, metrics),
        "sizes": _sizes(system, against, metrics),
        "steps": _steps(metrics),
        "parts": _parts(metrics),
        "around": _around(metrics),
        "memory": _memory(metrics),
        "bound": _bound(system, against, metrics),
    }
    return {f"{name}_{system}": table for name, table in found.items() if table}


def targets_table(system: str, metrics: Metrics, light: str, light_metrics: Metrics) -> str:
    """What was aimed at and what was measured, percent; "" where the main system was not measured.

    Args:
        system, light: the configs' names in the figures.
        metrics, light_metrics: of their files of tools/benchmark.py, against Keypoint R-CNN.
    """
    if not metrics:
        return ""
    rows = _ratios(system, metrics, _MOST_TIME)
    times = [metrics.get(f"seconds/{system}/{count}/fp32") for count in (50, 1)]
    grown = None if None in times else 100 * times[0] / times[1]
    rows.append((f"{system}, fp32: time at 50 people of that at 1", [_MOST_GROWTH, grown]))
    own = metrics.get(f"peak_mib/{system}/20/fp32")
    peaks = [metrics[n] for n in metrics if _is(n, "peak_mib", 3) and n.split("/")[1] != system]
    share = 100 * own / peaks[0] if peaks and own is not None else None
    rows.append((f"{system}, fp32: memory at 20 people", [_MOST_MEMORY, share]))
    rows += _ratios(light, light_metrics, _MOST_LIGHT)
    return _table(["", "at most, %", "measured, %"], rows)


def _ratios(
    system: str, metrics: Metrics, most: dict[tuple[int, str], float]
) -> list[tuple[str, list[float | None]]]:
    return [
        (
            f"{system}, {mode}: time at {count} {'person' if count == 1 else 'people'}",
            [limit, _times(metrics.get(f"ratio/{count}/{mode}"), 100)],
        )
        for (count, mode), limit in most.items()
    ]


def accuracy_table(metrics: Metrics) -> str:
    """Rows <network>, <mode> of figures <network>/<mode>/<score>; "" without any."""
    rows = dict.fromkeys("/".join(name.split("/")[:2]) for name in metrics)
    return _table(
        ["", *SCORES, "keypoint AP minus plain"],
        (
            (
                row.replace("/", ", "),
                [
                    *(metrics.get(f"{row}/{key}") for key in SCORES.values()),
                    _difference(metrics, row),
                ],
            )
            for row in rows
        ),
    )


def systems_table(metrics: Metrics) -> str:
    """Rows of figures systems/seconds/<config>/<people> and systems/ratio/...; "" without any."""
    rows = _values(metrics, "systems/seconds", 2)
    counts = sorted({int(n.rsplit("/", 1)[1]) for n in metrics if n.startswith("systems/seconds/")})

    def figures(kind: str, row: str, factor: float) -> list[float | None]:
        return [_times(metrics.get(f"systems/{kind}/{row}/{n}"), factor) for n in counts]

    head = ["people", *(f"{n}, ms" for n in counts), *(f"{n}, %" for n in counts)]
    return _table(
        head, ((r, [*figures("seconds", r, 1000), *figures("ratio", r, 100)]) for r in rows)
    )


def heads_table(metrics: Metrics) -> str:
    """Rows of figures heads/seconds/<refinement>/<people>; "" without any."""
    names = [n for n in metrics if n.startswith("heads/seconds/")]
    rows = [(n.split("/")[2], n.split("/")[3]) for n in names]

    def row(refinement: str, people: str) -> list[float | None]:
        seconds = metrics[f"heads/seconds/{refinement}/{people}"]
        ratio = metrics.get(f"heads/ratio/{refinement}/{people}")
        return [_times(seconds, 1000), _times(ratio, 100)]

    head = ["refinement", "ms", "% of none"]
    return _table(head, ((refinement, row(refinement, people)) for refinement, people in rows))


def _difference(metrics: Metrics, row: str) -> float | None:
    key = SCORES["keypoint AP"]
    own, plain = metrics.get(f"{row}/{key}"), metrics.get(f"{row.split('/')[0]}/{PLAIN}/{key}")
    # No "-0.0".
    return None if own is None or plain is None else round(own - plain, 1) + 0.0


def _is(name: str, first: str, parts: int) -> bool:
    return name.startswith(f"{first}/") and name.count("/") == parts


def _values(metrics: Metrics, first: str, place: int) -> list[str]:
    """The different parts of names at a place, in their order."""
    return list(dict.fromkeys(n.split("/")[place] for n in metrics if n.startswith(f"{first}/")))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _table(head: list[str], rows: Iterable[tuple[str, list[float | None]]]) -> str:
    rows = list(rows)
    return markdown_table(head, rows) if rows else ""


def _people(system: str, against: str, metrics: Metrics) -> str:
    names = [n for n in metrics if _is(n, "seconds", 3)]
    modes = list(dict.fromkeys(n.split("/")[3] for n in names if n.split("/")[1] == system))
    counts = sorted({int(n.split("/")[2]) for n in names})
    head = ["people", *([f"{against}, ms"] if against else []), *(f"{m}, ms" for m in modes)]
    head += [f"{mode}, %" for mode in modes if against]

    def row(count: int) -> list[float | None]:
        base = [metrics.get(f"seconds/{against}/{count}/{PLAIN}")] if against else []
        own = [metrics.get(f"seconds/{system}/{count}/{mode}") for mode in modes]
        ratios = [metrics.get(f"ratio/{count}/{mode}") for mode in modes if against]
        return [*(_times(s, 1000) for s in [*base, *own]), *(_times(r, 100) for r in ratios)]

    return _table(head, ((str(count), row(count)) for count in counts))


def _sizes(system: str, against: str, metrics: Metrics) -> str:
    names = [n for n in metrics if _is(n, "size_seconds", 3)]
    columns = [(against, PLAIN)] if against else []
    modes = dict.fromkeys(n.split("/")[3] for n in names if n.split("/")[1] == system)
    columns += [(system, mode) for mode in modes]
    sides = sorted({int(n.split("/")[2]) for n in names})
    return _table(
        ["side", *(f"{s if s == against else mode}, ms" for s, mode in columns)],
        (
            (
                str(side),
                [_times(metrics.get(f"size_seconds/{s}/{side}/{m}"), 1000) for s, m in columns],
            )
            for side in sides
        ),
    )


def _steps(metrics: Metrics) -> str:
    names = [n for n in metrics if _is(n, "step_seconds", 2)]
    first = next((metrics[n] for n in names), None)
    return _table(
        ["with it and all before", "ms", "% of plain"],
        (
            (n.split("/")[2], [_times(metrics[n], 1000), _times(metrics[n], 100 / first)])
            for n in names
        ),
    )


def _parts(metrics: Metrics) -> str:
    names = [n for n in metrics if _is(n, "part_seconds", 3)]
    parts = list(dict.fromkeys(n.split("/")[1] for n in names))
    modes = list(dict.fromkeys(n.split("/")[3] for n in names))
    counts = {n.split("/")[2] for n in names}
    if not counts:
        return ""
    (count,) = counts

    def cells(part: str) -> list[float | None]:
        ms = [_times(metrics.get(f"part_seconds/{part}/{count}/{m}"), 1000) for m in modes]
        flops = [metrics.get(f"gflops/{part}/{m}") for m in (PLAIN, "fp32")]
        return [*ms, _times(metrics.get(f"params/{part}"), 1e-6), *flops]

    head = ["", *(f"{mode}, ms" for mode in modes), "million parameters"]
    return _table([*head, "GFLOP plain", "GFLOP fp32"], ((part, cells(part)) for part in parts))


def _around(metrics: Metrics) -> str:
    """Drawing, loading, training."""
    names = [n for n in metrics if n.startswith("part_seconds/") and not _is(n, "part_seconds", 3)]
    return _table(
        ["", "ms"],
        ((n.split("/")[1].replace("_", " "), [_times(metrics[n], 1000)]) for n in names),
    )


def _memory(metrics: Metrics) -> str:
    names = [n for n in metrics if _is(n, "peak_mib", 3)]
    return _table(
        ["", "MiB"],
        ((f"{n.split('/')[1]}, {n.split('/')[3]}", [metrics[n]]) for n in names),
    )


def _bound(system: str, against: str, metrics: Metrics) -> str:
    """Least time by operations and rate of matrix products, and what is reached of it."""
    types = _values(metrics, "machine", 2)
    by_mode = _BOUND if "bfloat16" in types or "float16" not in types else _GPU_BOUND
    parts = _values(metrics, "params", 1)
    rows = []
    count = next((n.split("/")[2] for n in metrics if _is(n, "part_seconds", 3)), None)
    for mode, kind in by_mode.items():
        rate = metrics.get(f"machine/gflops/{kind}")
        flops = [metrics.get(f"gflops/{part}/fp32") for part in parts]
        seconds = metrics.get(f"seconds/{system}/{count}/{mode}")
        if None not in (rate, seconds, *flops) and flops:
            rows.append(_bound_row(f"{system}, {mode}", rate, sum(flops), seconds))
    total, rate = metrics.get(f"gflops/{against}/total"), metrics.get("machine/gflops/float32")
    seconds = metrics.get(f"seconds/{against}/{count}/{PLAIN}")
    if None not in (total, rate, seconds):
        rows.append(_bound_row(against, rate, total, seconds))
    head = ["", "GFLOP", "GFLOP/s of matrix products", "least ms", "measured ms", "% reached"]
    return _table(head, rows)


def _bound_row(
    name: str, rate: float, gflops: float, seconds: float
) -> tuple[str, list[float | None]]:
    least = gflops / rate
    return name, [gflops, rate, 1000 * least, 1000 * seconds, 100 * least / seconds]
