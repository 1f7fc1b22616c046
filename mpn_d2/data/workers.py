"""The processes that read and prepare images for a loader."""

from __future__ import annotations

from typing import Any

import cv2
from detectron2.data import build_detection_test_loader
from torch.utils.data import DataLoader

from mpn_d2.utils.parents import end_with_parent


def start_worker(worker: int) -> None:
    """What a worker of a loader does first: `worker_init_fn`."""
    end_with_parent()
    # Workers are as many as the user gave cores; OpenCV would start threads in each.
    cv2.setNumThreads(0)


def detection_test_loader(dicts: list[dict], **options: Any) -> DataLoader:
    """Detectron2's `build_detection_test_loader`, with workers of ours."""
    loader = build_detection_test_loader(dicts, **options)
    loader.worker_init_fn = start_worker
    return loader
