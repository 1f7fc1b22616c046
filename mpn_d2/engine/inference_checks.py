"""Keys of inference out of range, without effect, or that a system has nothing for."""

from __future__ import annotations

import logging
import math
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from mpn_d2.config import add_mpn_config
from mpn_d2.engine.views import build_view_plan

logger = logging.getLogger(__name__)

# Keys of numbers, with the least and the most that they can be.
RANGES = (
    ("MODEL.PEAKS.THRESH", 0, 1),
    ("MODEL.PEAKS.MAX_PER_TYPE", 1, math.inf),
    ("MODEL.RETINANET.SCORE_THRESH_TEST", 0, 1),
    ("MODEL.RETINANET.NMS_THRESH_TEST", 0, 1),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0, 1),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0, 1),
    ("MODEL.ASSEMBLER.BOX_SCORE_THRESH", 0, 1),
    ("TEST.DETECTIONS_PER_IMAGE", 1, math.inf),
    ("INPUT.MIN_SIZE_TEST", 0, math.inf),
    ("INPUT.MAX_SIZE_TEST", 1, math.inf),
    ("EVAL.MASK_THRESH", 0, 1),
    ("EVAL.CONFIDENCE_THRESH", 0, 1),
)


def check_ranges(cfg: CfgNode) -> None:
    """Raises a ValueError that names a number of RANGES that is out of it."""
    for key, least, most in RANGES:
        value = _value(cfg, key)
        if not least <= value <= most:
            allowed = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise ValueError(f"{key} is {value}: {allowed} is needed")


def check_system(cfg: CfgNode) -> None:
    """Raises a ValueError for what the system of a config cannot show or merge, without building
    its network (which `PoseInference` looks at, together with further ones)."""
    name = cfg.MODEL.META_ARCHITECTURE
    # Others than the registered ones are refused where the network is built.
    if name not in META_ARCH_REGISTRY or _has(name, "look"):
        return
    several = (cfg.TTA.ENABLED and not _is_plain(cfg)) or bool(cfg.ENSEMBLE.CONFIGS)
    if several and cfg.TTA.FUSION == "maps":
        raise ValueError(
            f"TTA.FUSION maps averages heatmaps of the whole image, which {name} does not give: "
            "set TTA.FUSION poses and OKS_NMS.MODE hard"
        )
    if cfg.EVAL.HEATMAPS:
        raise ValueError(
            f"EVAL.HEATMAPS is True (--heatmaps), but {name} gives no heatmaps: set it to False"
        )


def reads_images(cfg: CfgNode) -> bool:
    """False for systems of annotations alone (assemblers by themselves)."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return True
    return getattr(META_ARCH_REGISTRY.get(name), "reads_images", True)


def warn_of_idle_keys(cfg: CfgNode) -> None:
    """One line in the log for each of `idle_keys`."""
    for line in idle_keys(cfg):
        logger.warning(line)


def idle_keys(cfg: CfgNode) -> list[str]:
    """A line for each group of keys that were set, to another value than the default, and that do
    nothing unless another key is set as well; it tells which."""
    defaults = get_cfg()
    add_mpn_config(defaults)
    told: set[str] = set()
    lines = []
    for keys, counts, remedy in _conditions(cfg):
        idle = [k for k in keys if k not in told and _value(cfg, k) != _value(defaults, k)]
        if idle and not counts:
            told.update(idle)
            lines.append(f"{', '.join(idle)}: set, but without effect; {remedy}")
    if cfg.TTA.ENABLED and _is_plain(cfg):
        lines.append(
            "TTA.ENABLED is True, but there is no second view: set TTA.FLIP, TTA.SCALES or "
            "TTA.CROPS (2 or more)"
        )
    return lines


def _conditions(cfg: CfgNode) -> list[tuple[tuple[str, ...], bool, str]]:
    """Keys, whether they have an effect, and what would give them one."""
    name = cfg.MODEL.META_ARCHITECTURE
    views = ("TTA.SCALES", "TTA.FLIP", "TTA.CROPS", "TTA.CROP_OVERLAP")
    merging = ("TTA.FUSION", "TTA.BOXES", "TTA.MAP_SCALE")
    refinement = ("REFINE.MERGE", "REFINE.BOX_SCORE_THRESH")
    several = cfg.TTA.ENABLED or bool(cfg.ENSEMBLE.CONFIGS)
    half = cfg.SPEED.MODE in ("half", "fastest")
    by_tags = name not in META_ARCH_REGISTRY or _has(name, "refines_by_tags")
    soft = cfg.MODEL.RETINANET.NMS == "soft_gaussian"
    return [
        (views, cfg.TTA.ENABLED, "set TTA.ENABLED True, too"),
        (("TTA.CROP_OVERLAP",), cfg.TTA.CROPS > 1, "set TTA.CROPS 2 or more"),
        (merging, several, "set TTA.ENABLED True, or ENSEMBLE.CONFIGS"),
        (merging[1:], cfg.TTA.FUSION == "maps", "they are for TTA.FUSION maps"),
        (("OKS_NMS.THRESH",), cfg.OKS_NMS.MODE != "none", "set OKS_NMS.MODE hard or soft"),
        (refinement, bool(cfg.REFINE.CONFIG), "set REFINE.CONFIG and REFINE.WEIGHTS"),
        (("MODEL.RETINANET.SOFT_NMS_SIGMA",), soft, "set MODEL.RETINANET.NMS soft_gaussian"),
        (("SPEED.DTYPE",), half, "set SPEED.MODE half or fastest"),
        (("TEST.REFINE",), by_tags, f"{name} refines by REFINE.CONFIG"),
        (("TEST.FLIP",), by_tags, f"{name} takes TTA.ENABLED and TTA.FLIP"),
        (("TEST.MULTISCALE",), by_tags, f"{name} takes TTA.ENABLED and TTA.SCALES"),
    ]


def _has(name: str, attribute: str) -> bool:
    return hasattr(META_ARCH_REGISTRY.get(name), attribute)


def _is_plain(cfg: CfgNode) -> bool:
    """Whether the keys of TTA ask for the whole image at its own size alone."""
    plan = build_view_plan(cfg)
    return set(plan.scales) == {1.0} and not plan.flip and plan.crops < 2


def _value(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value
