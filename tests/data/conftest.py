"""What the tests of the data side share (their functions: mapper_cases.py)."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg

from mpn_d2.config import add_mpn_config
from mpn_d2.data import load_pose_dicts, register_pose_datasets


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_mpn_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def sample() -> list[dict]:
    """The bundled photographs as loaded for training."""
    register_pose_datasets()
    return load_pose_dicts("coco_sample_train", is_train=True)
