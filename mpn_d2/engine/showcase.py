"""What the commands share that train a small network and show what it learned."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.checkpoint import TAG
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.engine.stages import FINAL
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.files import write_text_atomically
from mpn_d2.utils.visualize import draw_people, write_png


class RunClock:
    """Seconds spent on a run by all the calls that it took; a killed call loses a few of them.

    Args:
        path: JSON file that keeps them.
        resume: add to what stands there, as nothing would be left of a run that starts anew.
        every: seconds between two writings.
    """

    def __init__(self, path: Path, *, resume: bool, every: float = 10.0) -> None:
        self._path, self._start = path, time.perf_counter()
        self._before = json.loads(path.read_text())["seconds"] if resume and path.is_file() else 0.0
        self._stopped = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._run, args=(every,), daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The sum; the clock stands still from now on."""
        self._stopped.set()
        self._thread.join()
        return self._write()

    def _run(self, every: float) -> None:
        while not self._stopped.wait(every):
            self._write()

    def _write(self) -> float:
        seconds = round(self._before + time.perf_counter() - self._start, 1)
        write_text_atomically(self._path, json.dumps({"seconds": seconds}) + "\n")
        return seconds


# What weights do not depend on, keys and whole sections: a finished run is tested anew with other
# values of these.
TEST_KEYS = (
    ("DATASETS", "TEST"),
    ("ENSEMBLE",),
    ("EVAL",),
    ("INPUT", "MIN_SIZE_TEST"),
    ("INPUT", "MAX_SIZE_TEST"),
    ("MODEL", "RETINANET", "NMS"),
    ("MODEL", "RETINANET", "NMS_THRESH_TEST"),
    ("MODEL", "RETINANET", "SCORE_THRESH_TEST"),
    ("MODEL", "RETINANET", "SOFT_NMS_SIGMA"),
    ("MODEL", "ROI_HEADS", "NMS_THRESH_TEST"),
    ("MODEL", "ROI_HEADS", "SCORE_THRESH_TEST"),
    ("MODEL", "ROI_KEYPOINT_HEAD", "POSE_SCORE"),
    ("MODEL", "ASSEMBLER", "MATCHING"),
    ("MODEL", "ASSEMBLER", "BOX_SCORE_THRESH"),
    ("MODEL", "ASSEMBLER", "POSE_SCORE"),
    ("MODEL", "POSE_REGRESSION", "MIN_SCORE"),
    ("MODEL", "POSE_REGRESSION", "TEST_SCORE"),
    ("MODEL", "SEQUENCE", "OMEGA_TEST"),
    ("MODEL", "SEQUENCE", "SCORE"),
    ("MODEL", "SEQUENCE", "SUBCELL"),
    ("OKS_NMS",),
    ("REFINE",),
    ("TEST", "MULTISCALE"),
    ("TEST", "REFINE"),
    ("TTA",),
)


def goes_on(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR holds a training of this config (TEST_KEYS aside); another is removed.

    Keys that came after that training count as what they are by default.
    """
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not saved.is_file():
        return False
    try:
        before = yaml.safe_load(saved.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if _trains(before) == _trains(yaml.safe_load(cfg.dump())):
        return True
    print(f"{cfg.OUTPUT_DIR} holds a run of another config: starting anew.")
    for stage in cfg.STAGES.ORDER:
        shutil.rmtree(Path(cfg.OUTPUT_DIR) / stage, ignore_errors=True)
    for name in (FINAL, TAG, "results.json"):
        (Path(cfg.OUTPUT_DIR) / name).unlink(missing_ok=True)
    return False


def _trains(config: object) -> object:
    """A config without TEST_KEYS; what is no config (a broken file) stays as it is."""
    if not isinstance(config, dict):
        return config
    config = _completed(config, yaml.safe_load(load_config("").dump()))
    for *nodes, key in TEST_KEYS:
        node = config
        for name in nodes:
            node = node.get(name, {})
        node.pop(key, None)
    return config


def _completed(config: dict, defaults: dict) -> dict:
    """The config with what it lacks of the defaults."""
    whole = {**defaults, **config}
    for key, value in whole.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            whole[key] = _completed(value, defaults[key])
    return whole


def drawn_predictions(
    cfg: CfgNode, weights: str, dataset: str, first: int | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """File name (without folder) and picture of each image of a dataset, people drawn on it.

    Args:
        cfg: of the model.
        weights: its checkpoint.
        dataset: registered name.
        first: only so many images; None for all.

    Yields:
        (name, (H, W, 3) uint8 RGB).
    """
    predictor = ImagePredictor(cfg, weights)
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    for record in load_pose_dicts([dataset], is_train=False)[:first]:
        image = read_pose_image(record["file_name"], "RGB")
        result = predictor([image])[0]
        picture = draw_people(
            image,
            result["instances"],
            skeleton,
            result.get("sem_seg"),
            score_threshold=cfg.EVAL.CONFIDENCE_THRESH,
        )
        yield Path(record["file_name"]).stem, picture


def write_predictions(cfg: CfgNode, weights: str, path: Path, first: int = 12) -> None:
    """Writes one PNG of the first images of DATASETS.TEST, people drawn on them.

    Args:
        cfg, weights: see `drawn_predictions`.
        path: of the file; its folder is made where it is missing.
        first: number of images.
    """
    drawn = drawn_predictions(cfg, weights, cfg.DATASETS.TEST[0], first=first)
    sheet = contact_sheet([picture for _, picture in drawn])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, sheet)


def contact_sheet(pictures: list[np.ndarray], columns: int = 4, height: int = 260) -> np.ndarray:
    """All pictures at one height, in rows on white."""
    small = [
        cv2.resize(
            p, (round(p.shape[1] * height / p.shape[0]), height), interpolation=cv2.INTER_AREA
        )
        for p in pictures
    ]
    rows = [np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)]
    width = max(row.shape[1] for row in rows)
    rows = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(rows)
