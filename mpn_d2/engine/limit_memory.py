"""Memory that large inputs take, against the bounds of docs/limits.md; for tools/limits.py.

The functions that end in _mib run in a process of their own (`utils.timing.in_fresh_process`), take
inputs from small to large, and return the MiB that the process has had in use at most after each.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.data.people_file import load_people_file
from mpn_d2.engine.data_speed import training_step
from mpn_d2.engine.image_drawing import DrawingOptions, DrawingReport, draw_images
from mpn_d2.engine.pose_predictor import PosePredictor
from mpn_d2.evaluation.results_file import load_results
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.files import write_text_atomically
from mpn_d2.utils.timing import peak_mib

MIB = 2**20
# A process with its libraries and a network as small as R_18_small's has at most so many MiB before
# anything large comes.
BASE_MIB = 1024
# On top of that: bytes for each pixel of an image that is read, predicted, drawn and written; and
# for each byte of a JSON file of annotations or results.
BYTES_PER_PIXEL = 32
BYTES_PER_JSON_BYTE = 16
# Frame of the measured video, (H, W) pixels, and people in an image of annotations or results.
_FRAME, _GROUP = (96, 128), 4
_CORNERS = 20


def image_bound_mib(pixels: int) -> float:
    """MiB that an image of so many pixels may take, from file to drawn picture."""
    return BASE_MIB + BYTES_PER_PIXEL * pixels / MIB


def json_bound_mib(size: int) -> float:
    """MiB that annotations or results of so many bytes may take, loaded and scored."""
    return BASE_MIB + BYTES_PER_JSON_BYTE * size / MIB


def image_mib(config: str, weights: str, files: Sequence[str], target: str) -> list[float]:
    """Of images that are read, predicted, drawn with everybody whom the network names, and written.

    Args:
        config: text of a whole config, on the CPU.
        weights: that fit it.
        files: images, from small to large.
        target: PNG file, written for each.
    """
    predictor = PosePredictor(_config(config), weights, confidence_threshold=0)
    peaks = []
    for file in files:
        report = DrawingReport()
        draw_images([file], {file: target}, predictor, DrawingOptions(), report, None, 1)
        if report.failures:
            raise ValueError(report.failures[0])
        peaks.append(peak_mib())
    return peaks


def video_mib(config: str, weights: str, counts: Sequence[int]) -> list[float]:
    """Of videos of so many frames, whose people are followed; config, weights: see `image_mib`."""
    predictor = PosePredictor(_config(config), weights, confidence_threshold=0)
    peaks = []
    for count in counts:
        for _ in predictor.stream(_frames(count), track=True):
            pass
        peaks.append(peak_mib())
    return peaks


def training_mib(config: str) -> float:
    """Of one step on the datasets of a config, which DATASETS.OWN may name."""
    cfg = _config(config)
    register_pose_datasets()
    register_own_datasets(cfg)
    _, step = training_step(cfg)
    step()
    return peak_mib()


def annotations_mib(files: Sequence[str]) -> list[float]:
    """Of annotation files that are checked and loaded as for training or evaluation."""
    peaks = []
    for file in files:
        load_people_file(file, get_skeleton("coco"))
        peaks.append(peak_mib())
    return peaks


def results_mib(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Of (results, annotations) that are loaded and scored as tools/evaluate.py does."""
    peaks = []
    for rows, truth in pairs:
        evaluator, found = load_results(rows, truth, get_skeleton("coco"))
        evaluator.score_rows(found.rows)
        peaks.append(peak_mib())
    return peaks


def write_image(path: str, width: int, height: int) -> None:
    """A progressive JPEG, which a reader must hold whole before it can unpack it."""
    Image.new("RGB", (width, height), (90, 120, 60)).save(path, progressive=True)


def write_annotations(path: str, people: int, *, per_image: int = _GROUP) -> int:
    """COCO annotations of so many people with joints and a polygon each; bytes of the file.

    Their images (640 x 480, names 0.jpg, 1.jpg ...) are not written.
    """
    skeleton = get_skeleton("coco")
    numbers = np.random.default_rng(0)
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480}
            for i in range(-(-people // per_image))
        ],
        "annotations": [
            {**_person(numbers, i, i // per_image), "iscrowd": 0, "num_keypoints": 1}
            for i in range(people)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": list(skeleton.keypoint_names)}],
    }
    write_text_atomically(path, json.dumps(content))
    return os.path.getsize(path)


def write_rows(path: str, people: int) -> int:
    """COCO results, one row for each person of `write_annotations`; bytes of the file."""
    numbers = np.random.default_rng(1)
    rows = []
    for i in range(people):
        person = _person(numbers, i, i // _GROUP)
        kept = {key: person[key] for key in ("image_id", "category_id", "bbox", "keypoints")}
        rows.append({**kept, "score": round(float(numbers.random()), 4)})
    write_text_atomically(path, json.dumps(rows))
    return os.path.getsize(path)


def _person(numbers: np.random.Generator, number: int, image: int) -> dict:
    """Somewhere in 640 x 480 pixels, with all joints and a polygon of _CORNERS points."""
    x, y = numbers.integers(0, 400, 2).tolist()
    joints = numbers.integers(0, 80, (get_skeleton("coco").num_keypoints, 2)) + (x, y)
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    corners = 40 + 40 * np.stack([np.cos(angles), np.sin(angles)], axis=1) + (x, y)
    return {
        "id": number + 1,
        "image_id": image,
        "category_id": 1,
        "bbox": [x, y, 80, 80],
        "area": 5000.0,
        "keypoints": list(itertools.chain(*((*joint, 2) for joint in joints.tolist()))),
        "segmentation": [corners.round(2).ravel().tolist()],
    }


def _frames(count: int) -> Iterator[np.ndarray]:
    numbers = np.random.default_rng(0)
    for _ in range(count):
        yield numbers.integers(0, 256, (*_FRAME, 3), dtype=np.uint8)


def _config(text: str) -> CfgNode:
    cfg = load_config("")
    cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    return cfg
