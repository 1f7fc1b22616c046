"""Skeletons in YAML files: what the keys mean, and what is wrong in one line (docs/own_data.md).

Keys: `keypoint_names`, `flip_pairs`, and `sigmas` or one `sigma` for all; `edges` and `name` may
be left out.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import yaml

_KEYS = ("name", "keypoint_names", "flip_pairs", "edges", "sigmas", "sigma")
_SIDES = (("left_", "right_"), ("right_", "left_"))


def read_skeleton_file(path: str | os.PathLike) -> dict:
    """The fields of `Skeleton` in a YAML file; what it means is `Skeleton`'s to check.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, a key missing, there twice, unknown or of the wrong kind; names file
            and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"skeleton file {path} not found")
    try:
        text = path.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: KEY: VALUE lines are needed, with the keys {', '.join(_KEYS)}")
    _check_no_key_twice(node, path)
    _check_keys(content, path)
    names = _names(content["keypoint_names"], f"{path}: keypoint_names")
    flip_pairs = _pairs(content["flip_pairs"], f"{path}: flip_pairs")
    _check_sides(names, flip_pairs, path)
    return {
        "name": str(content.get("name", path.stem)),
        "keypoint_names": names,
        "flip_pairs": flip_pairs,
        "edges": _pairs(content.get("edges", []), f"{path}: edges"),
        "sigmas": _sigmas(content, len(names), path),
    }


def skeleton_text(fields: dict) -> str:
    """YAML of the fields of a `Skeleton`; `read_skeleton_file` gives them back."""

    def plain(value: object) -> object:
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    content = {key: plain(value) for key, value in fields.items()}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)


def _check_no_key_twice(mapping: yaml.MappingNode, path: Path) -> None:
    """PyYAML would take the last one without a word."""
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ValueError(
                f"{path}: {key.value} is there twice, in lines {lines[key.value]} and {line}: "
                "keep one"
            )
        lines[key.value] = line


def _check_keys(content: dict, path: Path) -> None:
    for key in content:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KEYS)}"
            raise ValueError(f"{path}: no key {key!r} in a skeleton; {hint}")
    for key, remedy in (
        ("keypoint_names", "list them in the order of the annotations"),
        (
            "flip_pairs",
            "list the [left, right] names that a mirrored picture exchanges, [] if none",
        ),
    ):
        if content.get(key) is None:
            raise ValueError(f"{path}: {key} is missing: {remedy}")
    if ("sigmas" in content) == ("sigma" in content):
        raise ValueError(
            f"{path}: give either sigmas (OKS constants, one a keypoint) or sigma (one for all; "
            "COCO's lie from 0.025 for eyes to 0.107 for hips, 0.07 is a fair guess)"
        )


def _names(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is {value!r}: a list of names is needed")
    for i, name in enumerate(value):
        if not isinstance(name, str) or not name:
            # YAML reads no, yes, on and off as booleans.
            raise ValueError(f"{where}[{i}] is {name!r}, no text: put the name in quotes")
    return tuple(value)


def _pairs(value: object, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {value!r}: a list of pairs of names is needed")
    for i, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}[{i}] is {pair!r}: a pair [name, name] is needed")
    named = [_names(pair, f"{where}[{i}]") for i, pair in enumerate(value)]
    return tuple((first, second) for first, second in named)


def _check_sides(names: tuple[str, ...], pairs: tuple[tuple[str, str], ...], path: Path) -> None:
    """A forgotten or wrong pair would teach both sides as one, without any error later."""
    paired = {frozenset(pair) for pair in pairs}
    for name in names:
        for side, opposite in _SIDES:
            partner = opposite + name.removeprefix(side)
            pair = frozenset((name, partner))
            if name.startswith(side) and partner in names and pair not in paired:
                raise ValueError(
                    f"{path}: {name!r} and {partner!r} are no pair in flip_pairs: add them"
                )


def _sigmas(content: dict, count: int, path: Path) -> tuple[float, ...]:
    given = content.get("sigmas", content.get("sigma"))
    values = [given] * count if "sigma" in content else given
    key = "sigma" if "sigma" in content else "sigmas"
    if not isinstance(values, list):
        raise ValueError(f"{path}: {key} is {given!r}: a list of {count} numbers is needed")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            place = key if key == "sigma" else f"{key}[{i}]"
            raise ValueError(f"{path}: {place} is {value!r}, no number")
    return tuple(float(v) for v in values)
