"""The config keys of fast inference (engine/fast.py). No training reads them."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_speed_keys(cfg: CN) -> None:
    """Adds the keys with their defaults, in place; the default is the network as it trains."""
    cfg.SPEED = CN()
    # How trained networks run, those of ENSEMBLE and REFINE too: plain | fp32 (norms folded into
    # convolutions, levels smoothed before they are upsampled, channels-last) | half (and in
    # SPEED.DTYPE) | fp32_compiled | fastest (both with torch.compile, slow at the first images).
    # Pose regression: plain. [ours]
    cfg.SPEED.MODE = "plain"
    # Number type of half and fastest: auto (float16 on a GPU, bfloat16 on a CPU that computes with
    # it) | bfloat16 | float16 (GPU). Boxes, peaks and people are float32 in every mode. [ours]
    cfg.SPEED.DTYPE = "auto"
