"""COCO metrics: ground truth as predictions, two scores, empty sides, files."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.config import add_mpn_config
from mpn_d2.data import register_pose_datasets
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.evaluation import PoseEvaluator, build_evaluator, drop_missing, export_instances
from mpn_d2.evaluation.pose_evaluator import CURVE_FILES, RESULT_FILES
from mpn_d2.structures.skeleton import get_skeleton

SAMPLE = "coco_sample_val"
# Without masks one by one: test_mask_results.py.
TASKS = ("bbox", "keypoints")
TASK_CURVES = {task: name.removesuffix(".png") for task, name in CURVE_FILES.items()}
SKELETON = get_skeleton("coco")
K = SKELETON.num_keypoints


@pytest.fixture(autouse=True)
def _sample() -> None:
    register_pose_datasets()


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_mpn_config(cfg)
    return cfg


def _content(name: str = SAMPLE) -> dict:
    return json.loads(Path(MetadataCatalog.get(name).json_file).read_text())


def _evaluator(name: str = SAMPLE, **options: object) -> PoseEvaluator:
    given = {"tasks": ["bbox", "keypoints"], "sigmas": SKELETON.sigmas, **options}
    return PoseEvaluator(name, **given)


def _truth(content: dict) -> tuple[list[dict], list[dict]]:
    """The annotated people as model inputs and outputs."""
    inputs, outputs = [], []
    for image in content["images"]:
        people = [
            a
            for a in content["annotations"]
            if a["image_id"] == image["id"] and not a.get("iscrowd", 0)
        ]
        boxes = torch.tensor([a["bbox"] for a in people], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        joints = torch.tensor([a["keypoints"] for a in people], dtype=torch.float32)
        joints = joints.reshape(-1, K, 3)
        joints[..., :2] += 0.5
        joints[joints[..., 2] == 0] = 0
        joints[..., 2].clamp_(max=1)
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.ones(len(people))
        instances.pred_classes = torch.zeros(len(people), dtype=torch.int64)
        instances.pred_keypoints = joints
        inputs.append({"image_id": image["id"], "file_name": image["file_name"]})
        outputs.append({"instances": instances})
    return inputs, outputs


def _run(evaluator: PoseEvaluator, inputs: list[dict], outputs: list[dict]) -> dict:
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def _shifted(outputs: list[dict], pixels: float) -> list[dict]:
    moved = []
    for output in outputs:
        instances = Instances(output["instances"].image_size, **output["instances"].get_fields())
        joints = instances.pred_keypoints.clone()
        joints[..., 0] += pixels * (joints[..., 2] > 0)
        instances.pred_keypoints = joints
        instances.pred_boxes = Boxes(instances.pred_boxes.tensor + pixels)
        moved.append({"instances": instances})
    return moved


@pytest.mark.parametrize("name", [SAMPLE, "coco_sample_train"])
def test_truth_scores_100_again_and_again(name: str) -> None:
    inputs, outputs = _truth(_content(name))
    before = [o["instances"].pred_keypoints.clone() for o in outputs]
    evaluator = _evaluator(name)
    first = _run(evaluator, inputs, outputs)
    assert first["bbox"]["AP"] == first["keypoints"]["AP"] == pytest.approx(100)
    assert _run(evaluator, inputs, outputs) == first
    assert _run(_evaluator(name), inputs, outputs) == first
    for output, joints in zip(outputs, before, strict=True):
        assert torch.equal(output["instances"].pred_keypoints, joints)


def test_metrics_are_pycocotools_of_the_files(tmp_path: Path) -> None:
    """The written files, scored by pycocotools alone, say the same; worse when shifted."""
    inputs, outputs = _truth(_content())
    file = MetadataCatalog.get(SAMPLE).json_file
    values = []
    for pixels in (0.0, 3.0, 8.0):
        results = _run(_evaluator(output_dir=str(tmp_path)), inputs, _shifted(outputs, pixels))
        for task, written in (
            ("bbox", "coco_instances_results.json"),
            ("keypoints", "keypoints_results.json"),
        ):
            truth = COCO(file)
            scorer = COCOeval(truth, truth.loadRes(str(tmp_path / written)), task)
            scorer.evaluate(), scorer.accumulate(), scorer.summarize()
            # All of its figures, in its order; -1 where there is nobody to find.
            stats = [100 * value if value >= 0 else None for value in scorer.stats]
            assert list(results[task].values()) == pytest.approx(stats)
            assert results[task]["AP75"] == pytest.approx(100 * scorer.stats[2])
        recall = (results["bbox"]["AR100"], results["keypoints"]["AR"])
        assert 0 < min(recall) <= max(recall) <= 100 + 1e-9
        values.append((results["bbox"]["AP"], results["keypoints"]["AP"]))
    assert values[0] == (pytest.approx(100), pytest.approx(100))
    assert values[0][0] > values[1][0] > values[2][0]
    assert values[0][1] > values[1][1] > values[2][1]


def test_written_poses_are_the_annotations(tmp_path: Path) -> None:
    content = _content()
    _run(_evaluator(output_dir=str(tmp_path)), *_truth(content))
    poses = json.loads((tmp_path / "keypoints_results.json").read_text())
    boxes = json.loads((tmp_path / "coco_instances_results.json").read_text())
    people = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
    assert len(boxes) == len(people) and all("keypoints" not in b for b in boxes)
    with_joints = [a for a in people if a["num_keypoints"] > 0]
    assert len(poses) == len(with_joints) < len(people)

    def key(row: dict) -> tuple:
        return (row["image_id"], *np.round(row["bbox"], 2))

    for pose, person in zip(sorted(poses, key=key), sorted(with_joints, key=key), strict=True):
        assert pose["category_id"] == 1
        expected = np.array(person["keypoints"], dtype=float)
        expected[2::3] = np.minimum(expected[2::3], 1)
        np.testing.assert_allclose(pose["keypoints"], expected, atol=1e-4)
    curves = {f"{TASK_CURVES[task]}.{end}" for task in TASKS for end in ("png", "json")}
    assert {f.name for f in tmp_path.iterdir()} == {*(RESULT_FILES[t] for t in TASKS), *curves}


def test_each_score_ranks_its_own_task() -> None:
    """A false box rated above all others hurts boxes; its pose rated lowest hurts no pose."""
    inputs, outputs = _truth(_content())
    for output in outputs:
        instances = output["instances"]
        people = Instances.cat([instances, instances])
        count = len(instances)
        false = torch.arange(2 * count) >= count
        people.pred_boxes.tensor[count:, 0::2] += 10_000
        people.pred_keypoints[count:, :, 0] += 10_000 * (people.pred_keypoints[count:, :, 2] > 0)
        people.scores = torch.where(false, 0.9, 0.5)
        people.pose_scores = torch.where(false, 0.1, 0.8)
        output["instances"] = people
    separate = _run(_evaluator(), inputs, outputs)
    assert separate["bbox"]["AP"] < 70
    assert separate["keypoints"]["AP"] == pytest.approx(100)
    for output in outputs:
        output["instances"].remove("pose_scores")
    shared = _run(_evaluator(), inputs, outputs)
    assert shared["keypoints"]["AP"] < 70 and shared["bbox"] == separate["bbox"]


def test_boxes_without_keypoints_are_boxes_only() -> None:
    instances = Instances((50, 60))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 11, 22], [3, 4, 5, 6], [0, 0, 9, 9]]))
    instances.scores = torch.tensor([0.9, 0.8, 0.7])
    instances.pose_scores = torch.tensor([0.0, 0.25, 0.0])
    instances.pred_classes = torch.zeros(3, dtype=torch.int64)
    joints = torch.zeros(3, K, 3)
    joints[1, 2] = torch.tensor([4.0, 5.0, 0.5])
    joints[2, 0] = torch.tensor([4.0, 5.0, 0.0])  # filled in by a fallback: a place, no score
    instances.pred_keypoints = joints
    boxes, poses = export_instances(instances, 7)
    assert [b["bbox"] for b in boxes] == [[1, 2, 10, 20], [3, 4, 2, 2], [0, 0, 9, 9]]
    assert [b["score"] for b in boxes] == pytest.approx([0.9, 0.8, 0.7])
    assert [p["score"] for p in poses] == [0.25, 0.0]
    assert [p["bbox"] for p in poses] == [[3, 4, 2, 2], [0, 0, 9, 9]]
    expected = [0.0] * (3 * K)
    expected[6:9] = [3.5, 4.5, 0.5]
    assert poses[0]["keypoints"] == expected and poses[0]["image_id"] == 7
    assert export_instances(instances[:0], 7) == ([], [])
    instances.remove("pred_keypoints")
    assert export_instances(instances, 7) == (boxes, [])


@pytest.mark.parametrize("processed", ["nothing", "no instances", "boxes without poses"])
def test_no_predictions_score_zero(tmp_path: Path, processed: str) -> None:
    inputs, outputs = _truth(_content())
    for output in outputs:
        if processed == "no instances":
            output["instances"] = output["instances"][:0]
        else:
            output["instances"].remove("pred_keypoints")
    if processed == "nothing":
        inputs, outputs = [], []
    results = _run(_evaluator(output_dir=str(tmp_path)), inputs, outputs)
    assert set(results["keypoints"].values()) == {0.0}
    assert json.loads((tmp_path / "keypoints_results.json").read_text()) == []
    if processed == "boxes without poses":
        assert results["bbox"]["AP"] == pytest.approx(100)
    else:
        assert set(results["bbox"].values()) == {0.0}


@pytest.mark.parametrize("predict", [True, False])
@pytest.mark.parametrize("missing", ["people", "key", "keypoints"])
def test_no_ground_truth_is_none(register_coco: Callable, predict: bool, missing: str) -> None:
    content = _content()
    inputs, outputs = _truth(content)
    if missing == "key":
        del content["annotations"]
    elif missing == "people":
        content["annotations"] = []
    else:
        for annotation in content["annotations"]:
            del annotation["keypoints"], annotation["num_keypoints"]
    if not predict:
        inputs, outputs = [], []
    results = _run(_evaluator(register_coco(content)), inputs, outputs)
    assert set(results["keypoints"].values()) == {None}
    if missing == "keypoints":
        assert results["bbox"]["AP"] == (pytest.approx(100) if predict else 0)
    else:
        assert set(results["bbox"].values()) == {None}


def test_sizes_without_people_are_none_not_nan(register_coco: Callable) -> None:
    content = _content()
    content["annotations"] = [
        a for a in content["annotations"] if a["area"] > 96**2 and a["num_keypoints"] > 5
    ]
    for inputs, outputs in (_truth(content), ([], [])):
        results = _run(_evaluator(register_coco(content)), inputs, outputs)
        assert results["bbox"]["APs"] is None and results["keypoints"]["APm"] is None
        large = 100 if outputs else 0
        assert results["keypoints"]["APl"] == results["bbox"]["APl"] == pytest.approx(large)
        numbers = [v for task in drop_missing(results).values() for v in task.values()]
        assert numbers and all(math.isfinite(v) for v in numbers)


def test_images_without_people_count(register_coco: Callable) -> None:
    """Somebody found in an image without people is wrong, unless one asks for the others alone."""
    content = _content()
    empty = {**content["images"][0], "id": 10**6, "file_name": "empty.jpg"}
    name = register_coco({**content, "images": [*content["images"], empty]})
    assert len(load_pose_dicts(name, is_train=False)) == len(content["images"]) + 1
    inputs, outputs = _truth(content)
    nobody = outputs[0]["instances"]
    false = Instances(nobody.image_size, **nobody.get_fields())
    false.scores = false.scores + 1
    inputs.append({"image_id": 10**6, "file_name": "empty.jpg"})
    outputs.append({"instances": false})
    evaluator = _evaluator(name)
    results = _run(evaluator, inputs, outputs)
    assert results["bbox"]["AP"] < 99 and results["keypoints"]["AP"] < 99
    others = evaluator.evaluate([image["id"] for image in content["images"]])
    assert others["bbox"]["AP"] == others["keypoints"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_without_annotations(
    tmp_path: Path,
    register_coco: Callable,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    packed: bool,
) -> None:
    """COCO's image_info files: 80 categories, no "annotations": no metrics, the server's files."""
    content = _content()
    inputs, outputs = _truth(content)
    del content["annotations"]
    content["categories"] = [{"id": i, "name": f"thing {i}"} for i in range(2, 81)]
    content["categories"].append({"id": 1, "name": "person", "supercategory": "person"})
    name = register_coco(content)
    file = tmp_path / ("image_info_test-dev2017.json" + (".gz" if packed else ""))
    text = json.dumps(content).encode()
    file.write_bytes(gzip.compress(text) if packed else text)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(json_file=str(file), image_root=str(tmp_path))
    assert len(load_pose_dicts(name, is_train=False)) == len(content["images"])
    out = tmp_path / "out"
    caplog.set_level("INFO", "mpn_d2")
    results = _run(_evaluator(name, output_dir=str(out), algorithm="net"), inputs, outputs)
    assert set(results["bbox"]) == set(_run(_evaluator(), [], [])["bbox"])
    assert {v for of_task in results.values() for v in of_task.values()} == {None}
    assert f"bbox on {name}" not in capsys.readouterr().out
    (line,) = [r.getMessage() for r in caplog.records if "COCO's server" in r.getMessage()]
    stems = [f"{kind}_test-dev2017_net_results" for kind in ("detections", "person_keypoints")]
    assert all(f"{stem}.zip" in line for stem in stems)
    ours = {
        *(RESULT_FILES[t] for t in TASKS),
        *(f"{s}.{end}" for s in stems for end in ("json", "zip")),
    }
    assert {f.name for f in out.iterdir()} == ours
    rows = json.loads((out / f"{stems[1]}.json").read_text())
    written = json.loads((out / RESULT_FILES["keypoints"]).read_text())
    assert len(rows) == len(written) > 10
    assert set(rows[0]) == {"image_id", "category_id", "keypoints", "score"}
    assert {row["category_id"] for row in rows} == {1}
    # What the server would say: as good as the truth that it was made from, rounded to tenths.
    truth = COCO(MetadataCatalog.get(SAMPLE).json_file)
    scorer = COCOeval(truth, truth.loadRes(rows), "keypoints")
    scorer.evaluate(), scorer.accumulate(), scorer.summarize()
    assert scorer.stats[0] == pytest.approx(1)


def test_without_annotations_and_folder(register_coco: Callable) -> None:
    content = _content()
    inputs, outputs = _truth(content)
    del content["annotations"]
    results = _run(_evaluator(register_coco(content)), inputs, outputs)
    assert set(results["keypoints"].values()) == {None}
    with pytest.raises(ValueError, match=r"EVAL\.ALGORITHM_NAME is 'a b'"):
        _evaluator(algorithm="a b")


def test_category_ids_of_the_dataset(register_coco: Callable, tmp_path: Path) -> None:
    """The model's class 0 becomes the dataset's id, loaded or not."""
    content = _content()
    for annotation in content["annotations"]:
        annotation["category_id"] = 7
    content["categories"][0]["id"] = 7
    name = register_coco(content)
    inputs, outputs = _truth(content)
    for load in (False, True):
        if load:
            DatasetCatalog.get(name)
        results = _run(_evaluator(name, output_dir=str(tmp_path)), inputs, outputs)
        assert results["keypoints"]["AP"] == results["bbox"]["AP"] == pytest.approx(100)
        rows = json.loads((tmp_path / "keypoints_results.json").read_text())
        assert {row["category_id"] for row in rows} == {7}


@pytest.mark.parametrize("person", [1, 7])
def test_people_alone_are_scored(register_coco: Callable, tmp_path: Path, person: int) -> None:
    """Others' annotations and predictions change nothing, whatever the order of the categories."""
    inputs, outputs = _truth(_content())
    outputs = _shifted(outputs, 3.0)
    wanted = _run(_evaluator(), inputs, outputs)
    assert 0 < wanted["bbox"]["AP"] < 90

    content = _content()
    for annotation in content["annotations"]:
        annotation["category_id"] = person
    dogs = [
        {**a, "id": 10**7 + i, "category_id": 4, "bbox": [0, 0, 9, 9]}
        for i, a in enumerate(content["annotations"])
    ]
    del dogs[0]["keypoints"], dogs[1]["area"]
    content["annotations"] = dogs + content["annotations"]
    content["categories"] = [{"id": 4, "name": "dog"}, {"id": person, "name": "person"}]
    name = register_coco(content)
    results = _run(_evaluator(name, output_dir=str(tmp_path)), inputs, outputs)
    assert results == wanted
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in rows} == {person}
    DatasetCatalog.get(name)  # Detectron2's loader writes both names to the metadata
    for output in outputs:
        people = output["instances"]
        false = Instances(people.image_size, **people.get_fields())
        false.scores, false.pred_classes = people.scores + 1, people.pred_classes + 1
        false.pred_boxes = Boxes(people.pred_boxes.tensor + 200)
        output["instances"] = Instances.cat([people, false])
    assert _run(_evaluator(name), inputs, outputs) == wanted


def test_ids_from_zero_and_no_crowd_flag(register_coco: Callable) -> None:
    """pycocotools alone takes a match with annotation 0 for none, and wants `iscrowd`."""
    content = _content()
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    for i, annotation in enumerate(content["annotations"]):
        annotation["id"] = i
        del annotation["iscrowd"]
    results = _run(_evaluator(register_coco(content)), *_truth(content))
    assert results["bbox"]["AP"] == results["keypoints"]["AP"] == pytest.approx(100)


def test_sigmas_count(register_coco: Callable) -> None:
    inputs, outputs = _truth(_content())
    outputs = _shifted(outputs, 6.0)
    tight = _evaluator(sigmas=[s / 4 for s in SKELETON.sigmas], tasks=["keypoints"])
    loose = _evaluator(sigmas=[s * 4 for s in SKELETON.sigmas], tasks=["keypoints"])
    assert list(_run(tight, inputs, outputs)) == ["keypoints"]
    assert (
        _run(tight, inputs, outputs)["keypoints"]["AP"] + 20
        < (_run(loose, inputs, outputs)["keypoints"]["AP"])
    )


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'panoptic'"):
        _evaluator(tasks=["panoptic"])
    with pytest.raises(ValueError, match=r"coco_sample_val.*MODEL\.SKELETON"):
        _evaluator(sigmas=get_skeleton("crowdpose").sigmas)
    inputs, outputs = _truth(_content())
    outputs[0]["instances"].pred_keypoints = outputs[0]["instances"].pred_keypoints[:, 1:]
    with pytest.raises(ValueError, match="sigmas"):
        _run(_evaluator(), inputs[:1], outputs[:1])


def test_table_names_the_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    content = _content()
    poses = sum(a["num_keypoints"] > 0 for a in content["annotations"])
    _run(_evaluator(), *_truth(content))
    printed = capsys.readouterr().out
    assert f"keypoints on {SAMPLE}: 9 images, 28 annotated, {poses} predicted" in printed
    assert printed.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2


def test_builder_follows_the_config(cfg: CfgNode, tmp_path: Path) -> None:
    evaluator = build_evaluator(cfg, SAMPLE, str(tmp_path))
    assert isinstance(evaluator, DatasetEvaluators)
    content = _content()
    inputs, outputs = _truth(content)
    images = {image["id"]: image for image in content["images"]}
    for given, output in zip(inputs, outputs, strict=True):
        image = images[given["image_id"]]
        output["sem_seg"] = torch.zeros(2, image["height"], image["width"])
    evaluator.reset()
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "keypoints", "sem_seg"]
    assert results["keypoints"]["AP"] == pytest.approx(100)
    assert results["sem_seg"]["IoU-person"] == 0

    cfg.EVAL.TASKS = ["bbox"]
    evaluator = build_evaluator(cfg, SAMPLE)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    assert list(evaluator.evaluate()) == ["bbox"]
    for tasks in (["bbox", "boxes"], []):
        cfg.EVAL.TASKS = tasks
        with pytest.raises(ValueError, match=r"EVAL\.TASKS"):
            build_evaluator(cfg, SAMPLE)
    cfg.EVAL.TASKS = ["bbox"]
    with pytest.raises(ValueError, match="coco_sample_val"):
        build_evaluator(cfg, "coco_sample_vall")
