"""The configs that come with the package, by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from mpn_d2.config import load_config

_PACKAGE = Path(__file__).resolve().parent
# In an installed package they lie inside it (setup.py), in the repository beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def get_config(name: str, options: Sequence[str] = ()) -> CfgNode:
    """A config that comes with the package, with KEY VALUE options merged; not frozen.

    Args:
        name: as under configs/ in the repository: "MultiPoseNet/R_50.yaml".
        options: `["MODEL.WEIGHTS", "model_final.pth", ...]`.

    Raises:
        FileNotFoundError: no config of this name; tells the nearest ones.
        ValueError: see `mpn_d2.config.load_config`.
    """
    return load_config(config_file(name), [str(option) for option in options])


def config_file(name: str | os.PathLike) -> str:
    """The path of a config: `name` itself where it is a file, else that of the package's config.

    Raises:
        FileNotFoundError: there is neither; tells the nearest names.
    """
    if os.path.isfile(name):
        return os.fspath(name)
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return str(folder / name)
    known = sorted({str(f.relative_to(d)) for d in _FOLDERS for f in d.rglob("*.yaml")})
    near = difflib.get_close_matches(os.fspath(name), known, n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise FileNotFoundError(
        f"config {os.fspath(name)}: no such file, and no config of mpn_d2{hint}"
    )
