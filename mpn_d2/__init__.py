"""mpn_d2: multi-person pose estimation for Detectron2.

Importing it fills the registries; it registers no dataset and reads no file. Call
`add_mpn_config(cfg)` on a Detectron2 config before merging one of ours into it, or take one of ours
with `get_config(name)`. `PosePredictor` finds people on images; what it needs is imported when it
is first asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings

# While `python -m` looks for a module, its argv begins with "-m". The doctor is to answer where
# what the rest of the package needs is missing.
_DOCTOR_ALONE = sys.argv[:1] == ["-m"] and any(
    argument.endswith("mpn_d2.doctor") for argument in sys.orig_argv
)

if not _DOCTOR_ALONE:
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            "mpn_d2 needs Detectron2, which is not on PyPI under its own name: run "
            "`python tools/install_detectron2.py` (no compiler needed), or install "
            "github.com/facebookresearch/detectron2"
        )
    with warnings.catch_warnings():
        # fvcore and Detectron2 script functions of their own while they are imported: a warning at
        # each of our commands, about nothing that its user could change.
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
        from mpn_d2 import modeling
    from mpn_d2.config import add_mpn_config
    from mpn_d2.config_files import get_config

__version__ = "0.1.0"

# Modules that import much: drawing, evaluation, OpenCV.
_LAZY = {
    "PosePrediction": "mpn_d2.engine.pose_prediction",
    "PosePredictor": "mpn_d2.engine.pose_predictor",
}

__all__ = [
    "PosePrediction",
    "PosePredictor",
    "__version__",
    "add_mpn_config",
    "get_config",
    "modeling",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
