"""CrowdPose: easy, medium and hard AP against pycocotools on the files of each part alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.data.datasets import register_people
from mpn_d2.evaluation import PoseEvaluator
from mpn_d2.evaluation.crowding import images_by_crowding
from mpn_d2.structures.skeleton import get_skeleton

SKELETON = get_skeleton("crowdpose")
K = SKELETON.num_keypoints
PARTS = {"AP_easy": (0.0, 0.05), "AP_medium": (0.1, 0.4, 0.8), "AP_hard": (0.81, 1.0)}


def _content(crowding: list[float | None], people: int = 2) -> dict:
    """As CrowdPose's files: no `area`, no masks."""
    images, annotations = [], []
    for image_id, index in enumerate(crowding, start=1):
        image = {"id": image_id, "file_name": f"{image_id}.jpg", "width": 300, "height": 200}
        images.append(image if index is None else {**image, "crowdIndex": index})
        for _ in range(people):
            corner = torch.rand(2) * torch.tensor([180.0, 80.0])
            joints = (corner + torch.rand(K, 2) * 100).round()
            flat = torch.cat([joints, torch.full((K, 1), 2.0)], dim=1).view(-1).int().tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [*corner.tolist(), 100.0, 100.0],
                    "keypoints": flat,
                    "num_keypoints": K,
                }
            )
    categories = [{"id": 1, "name": "person"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _predictions(content: dict, error: float) -> tuple[list[dict], list[dict]]:
    """The truth, joints off by up to `error` pixels, more so from image to image."""
    inputs, outputs = [], []
    for image in content["images"]:
        people = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        joints = torch.tensor([a["keypoints"] for a in people]).view(-1, K, 3).float()
        joints[..., :2] += 0.5 + error * image["id"] * torch.randn(len(people), K, 2)
        boxes = torch.tensor([a["bbox"] for a in people])
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.rand(len(people))
        instances.pred_classes = torch.zeros(len(people), dtype=torch.int64)
        instances.pred_keypoints = joints
        inputs.append({"image_id": image["id"], "file_name": image["file_name"]})
        outputs.append({"instances": instances})
    return inputs, outputs


def _run(evaluator: PoseEvaluator, inputs: list[dict], outputs: list[dict], **options) -> dict:
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate(**options)


def _evaluator(name: str, **options: object) -> PoseEvaluator:
    return PoseEvaluator(name, tasks=["bbox", "keypoints"], sigmas=SKELETON.sigmas, **options)


def _average_precision(content: dict, results: list[dict], ids: list[int]) -> float:
    """pycocotools alone, on a file that holds these images only; area as CrowdPose's own code."""
    truth = COCO()
    truth.dataset = {
        **content,
        "images": [i for i in content["images"] if i["id"] in ids],
        "annotations": [
            {**a, "area": 0.53 * a["bbox"][2] * a["bbox"][3]}
            for a in content["annotations"]
            if a["image_id"] in ids
        ],
    }
    truth.createIndex()
    scorer = COCOeval(
        truth, truth.loadRes([r for r in results if r["image_id"] in ids]), "keypoints"
    )
    scorer.params.kpt_oks_sigmas = torch.tensor(SKELETON.sigmas).double().numpy()
    scorer.evaluate(), scorer.accumulate(), scorer.summarize()
    return 100 * scorer.stats[0]


def test_parts_are_scored_as_if_alone(register_coco: Callable, tmp_path: Path) -> None:
    crowding = [index for part in PARTS.values() for index in part]
    content = _content([*crowding, None])
    name = register_coco(content)
    inputs, outputs = _predictions(content, 0.6)
    figures = _run(_evaluator(name, output_dir=str(tmp_path / "out")), inputs, outputs)
    results = json.loads((tmp_path / "out" / "keypoints_results.json").read_text())
    values = []
    for metric, indices in PARTS.items():
        ids = [i["id"] for i in content["images"] if i.get("crowdIndex") in indices]
        assert len(ids) == len(indices)
        values.append(_average_precision(content, results, ids))
        assert figures["keypoints"][metric] == pytest.approx(values[-1])
    assert len({round(v, 3) for v in values}) == 3 and 0 < min(values) < 100
    everything = [i["id"] for i in content["images"]]
    wanted = _average_precision(content, results, everything)
    assert figures["keypoints"]["AP"] == pytest.approx(wanted)
    assert not any("_" in metric for metric in figures["bbox"])
    # Restricted to images of one part: the others have no ground truth.
    some = _run(_evaluator(name), inputs, outputs, img_ids=[1, 2])
    assert some["keypoints"]["AP_easy"] == pytest.approx(figures["keypoints"]["AP_easy"])
    assert some["keypoints"]["AP_medium"] is some["keypoints"]["AP_hard"] is None


def test_parts_without_images_or_predictions(register_coco: Callable) -> None:
    content = _content([0.4, 0.5])
    name = register_coco(content)
    for inputs, outputs, medium in ((*_predictions(content, 0.0), 100), ([], [], 0)):
        figures = _run(_evaluator(name), inputs, outputs)["keypoints"]
        assert figures["AP_medium"] == pytest.approx(medium)
        assert figures["AP_easy"] is None and figures["AP_hard"] is None
    plain = _run(_evaluator(register_coco(_content([None]))), [], [])
    assert not any(metric.startswith("AP_") for metric in plain["keypoints"])


def test_bounds() -> None:
    """Design 7.9: [0, 0.1), [0.1, 0.8], (0.8, 1]."""
    images = [{"id": i, "crowdIndex": c} for i, c in enumerate((0, 0.0999, 0.1, 0.8, 0.8001, 1))]
    assert images_by_crowding(images) == {
        "AP_easy": [0, 1],
        "AP_medium": [2, 3],
        "AP_hard": [4, 5],
    }
    assert images_by_crowding([{"id": 1}, {"id": 2, "crowdIndex": None}]) == {}


def test_real_files_of_crowdpose_and_ochuman(mpn_data: Path) -> None:
    """The truth as prediction scores 100 on both; CrowdPose's two images are of medium crowding."""
    for kind, skeleton in (("crowdpose", SKELETON), ("ochuman", get_skeleton("coco"))):
        folder = mpn_data / "formats" / kind
        file = folder / f"test_{kind}.json"
        name = f"mpn_test_{kind}"
        register_people(name, json_file=str(file), image_root=str(folder), skeleton=skeleton)
        content = json.loads(file.read_text())
        inputs, outputs = [], []
        for image in content["images"]:
            people = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            joints = torch.tensor([a["keypoints"] for a in people]).float()
            instances = Instances((image["height"], image["width"]))
            boxes = torch.tensor([a["bbox"] for a in people]).float()
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.ones(len(people))
            instances.pred_classes = torch.zeros(len(people), dtype=torch.int64)
            instances.pred_keypoints = joints.view(len(people), -1, 3)
            # Joints that are not labelled stay 0, 0, 0: not assigned.
            labelled = instances.pred_keypoints[..., 2:] > 0
            instances.pred_keypoints[..., :2] += 0.5 * labelled
            inputs.append({"image_id": image["id"], "file_name": image["file_name"]})
            outputs.append({"instances": instances})
        evaluator = PoseEvaluator(name, tasks=["bbox", "keypoints"], sigmas=skeleton.sigmas)
        figures = _run(evaluator, inputs, outputs)
        assert figures["bbox"]["AP"] == figures["keypoints"]["AP"] == pytest.approx(100)
        if kind == "crowdpose":
            assert figures["keypoints"]["AP_medium"] == pytest.approx(100)
            assert figures["keypoints"]["AP_easy"] is figures["keypoints"]["AP_hard"] is None
