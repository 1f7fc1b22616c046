"""mpn_d2: multi-person pose estimation for Detectron2.

Importing it fills the registries; it registers no dataset and reads no file. Call
`add_mpn_config(cfg)` on a Detectron2 config before merging one of ours into it.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("detectron2") is None:
    raise ImportError(
        "mpn_d2 needs Detectron2, which is not on PyPI under its own name: run "
        "`python tools/install_detectron2.py` (no compiler needed), or install "
        "github.com/facebookresearch/detectron2"
    )

from mpn_d2 import modeling
from mpn_d2.config import add_mpn_config

__version__ = "0.1.0"

__all__ = ["__version__", "add_mpn_config", "modeling"]
