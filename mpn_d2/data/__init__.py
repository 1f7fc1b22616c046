"""Datasets and their mapper. Importing registers nothing: call `register_pose_datasets`."""

from __future__ import annotations

from mpn_d2.data.dataset_mapper import MASK_STRIDE, PoseDatasetMapper
from mpn_d2.data.datasets import check_dataset, load_pose_dicts, register_pose_datasets

__all__ = [
    "MASK_STRIDE",
    "PoseDatasetMapper",
    "check_dataset",
    "load_pose_dicts",
    "register_pose_datasets",
]
