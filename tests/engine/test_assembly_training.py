"""Training the assembly from annotations alone, as train_net.py does it: no image is there."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_model

import train_net
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.engine.assembler_weights import load_assembler, save_half
from mpn_d2.engine.assembly_evaluation import evaluate_annotations, evaluates_annotations
from mpn_d2.engine.stages import train
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.modeling.assembly.weights import filled_settings

REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / "configs" / "MultiPoseNet" / "PRN_poses.yaml"
TINY = ["MODEL.PRN.NODES", "4", "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4"]
TINY += ["SOLVER.BASE_LR", "0.01", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2"]
TINY += ["TEST.EVAL_PERIOD", "3", "DATASETS.TRAIN", "('people',)", "DATASETS.TEST", "('people',)"]


@pytest.fixture()
def options(sample_dir: Path, tmp_path: Path) -> list[str]:
    """Of the bundled annotations, without a folder of images."""
    people = sample_dir / "annotations" / "person_keypoints_train.json"
    return [*TINY, "DATASETS.OWN.people.JSON", str(people), "OUTPUT_DIR", str(tmp_path / "out")]


@pytest.fixture()
def command(options: list[str]) -> Callable[..., None]:
    def run(*more: str, stage: str = "all", eval_only: bool = False, config: Path = CONFIG) -> None:
        arguments = Namespace(
            config_file=str(config),
            stage=stage,
            resume=False,
            eval_only=eval_only,
            num_gpus=0,
            opts=[*options, *more],
        )
        train_net.main(arguments)

    return run


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["people"]


@pytest.mark.parametrize("stage", ["all", "assembly"])
def test_trains_evaluates_and_keeps_the_best(stage, command, tmp_path):
    command(stage=stage)
    out = tmp_path / "out"
    folder = out / "assembly" if stage == "all" else out
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {"people/keypoints/AP", "people/keypoints/owner_share"} < set(lines[-1])
    best = json.loads((folder / "model_best.json").read_text())
    assert best["metric"] == "keypoints/AP" and (folder / "model_best.pth").is_file()
    # The last evaluation, as it is printed and saved.
    [tasks] = [results(out)]
    assert set(tasks) == {"keypoints"}
    assert 0 < tasks["keypoints"]["AP"] <= 100 and 0 < tasks["keypoints"]["owner_share"] <= 100
    assert best["value"] >= tasks["keypoints"]["AP"]
    state = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert state and all(name.startswith("assembler.") for name in state)
    # Once more from its file, and in half precision.
    before = results(out)
    (out / "results.json").unlink()
    command(stage=stage, eval_only=True)
    assert results(out) == before
    save_half(str(out / "model_final.pth"), str(tmp_path / "half.pth"))
    command("MODEL.WEIGHTS", str(tmp_path / "half.pth"), stage=stage, eval_only=True)
    assert results(out)["keypoints"]["AP"] == pytest.approx(before["keypoints"]["AP"], abs=2)


def test_evidence_without_weights_needs_no_training(command, tmp_path):
    command("MODEL.ASSEMBLER.EVIDENCE", "identity", eval_only=True)
    assert 0 < results(tmp_path / "out")["keypoints"]["AP"] <= 100
    with pytest.raises(ValueError, match="nothing to evaluate: give MODEL.WEIGHTS"):
        command("MODEL.ASSEMBLER.EVIDENCE", "ucr", eval_only=True)
    with pytest.raises(ValueError, match=r"has one part, assembly \(--stage assembly\)"):
        command(stage="keypoint")


def test_weights_of_the_package_can_be_evaluated(command, tmp_path):
    config = CONFIG.with_name("Assembler_coco.yaml")
    command(eval_only=True, config=config)
    assert results(tmp_path / "out")["keypoints"]["AP"] > 90
    with pytest.raises(ValueError, match="nothing to evaluate: give MODEL.WEIGHTS"):
        command("MODEL.ASSEMBLER.WEIGHTS", "", eval_only=True, config=config)


class Killed(Exception):
    pass


class KillAfter(HookBase):
    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.iterations:
            raise Killed


def test_resumed_equals_uninterrupted(options, paper_config, tmp_path, monkeypatch):
    more = ["MODEL.PRN.FLIP_PROB", "0.5", "INPUT.NOISE.PROB", "0.5", "MODEL.PRN.CURRICULUM"]
    more += ["growing", "MODEL.PRN.GROWING_ITERS", "2", "SOLVER.AMP.ENABLED", "True"]
    more += ["SOLVER.LR_SCHEDULER_NAME", "ReduceOnPlateau", "SOLVER.PLATEAU.METRIC"]
    more += ["keypoints/AP", "SOLVER.PLATEAU.PATIENCE", "0", "SOLVER.PLATEAU.THRESHOLD", "0.9"]
    more += ["TEST.EVAL_PERIOD", "2"]
    real = PoseTrainer.build_hooks

    def run(name: str, *, resume: bool = False) -> dict:
        changed = [*options, *more, "OUTPUT_DIR", str(tmp_path / name)]
        cfg = paper_config("MultiPoseNet/PRN_poses.yaml", changed)
        register_own_datasets(cfg)
        train(cfg, "assembly", changed, resume=resume)
        return torch.load(tmp_path / name / "model_final.pth", weights_only=True)

    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(PoseTrainer, "build_hooks", lambda self: [*real(self), KillAfter(5)])
        with pytest.raises(Killed):
            run("cut")
    assert (tmp_path / "cut/last_checkpoint").read_text() == "model_0000003.pth"
    cut = run("cut", resume=True)
    assert whole["model"].keys() == cut["model"].keys()
    assert all(torch.equal(value, cut["model"][name]) for name, value in whole["model"].items())
    plateau = whole["trainer"]["hooks"]["LRScheduler"]["plateau"]
    assert plateau == cut["trainer"]["hooks"]["LRScheduler"]["plateau"]
    # Three evaluations, the AP of each seen by the plateau, no gain of 90 % in the last two.
    assert plateau["seen"] == 3 and plateau["share"] == pytest.approx(0.01)
    assert 0 < plateau["best"] <= 100


def scene(image_id: int, corners: list[int], crowd: bool = False) -> tuple[dict, list[dict]]:
    """An image with people of 40 x 80 at these left edges, a crowd around them if asked for."""
    people = []
    for left in corners:
        keypoints = [v for k in range(17) for v in (left + 3 + 2 * k, 14 + 4 * k, 2)]
        people.append({"bbox": [left, 10, 40, 80], "keypoints": keypoints, "iscrowd": 0})
    if crowd:
        # First, as the greedy rule asks boxes in order.
        people.insert(0, {"bbox": [0, 5, 110, 90], "keypoints": [0] * 51, "iscrowd": 1})
    image = {"id": image_id, "file_name": f"{image_id}.jpg", "height": 100, "width": 120}
    return image, [{**p, "image_id": image_id, "category_id": 1, "area": 3200} for p in people]


def coco(*scenes: tuple[dict, list[dict]]) -> dict:
    people = [person for _, people in scenes for person in people]
    return {
        "images": [image for image, _ in scenes],
        "annotations": [{**p, "id": i + 1} for i, p in enumerate(people)],
        "categories": [{"id": 1, "name": "person"}],
    }


@pytest.fixture()
def identity(paper_config) -> torch.nn.Module:
    return build_model(
        paper_config("MultiPoseNet/PRN_poses.yaml", ["MODEL.ASSEMBLER.EVIDENCE", "identity"])
    )


def test_figures_by_hand(register_coco, identity, paper_config):
    """People apart from one another come out whole; a crowd's box around them takes joints."""
    name = register_coco(coco(scene(1, [5, 65]), scene(2, [30])))
    cfg = paper_config("MultiPoseNet/PRN_poses.yaml", ["MODEL.ASSEMBLER.EVIDENCE", "identity"])
    found = evaluate_annotations(cfg, identity.train(), name)
    assert identity.assembler.training
    assert found["keypoints"]["AP"] == pytest.approx(100)
    assert found["keypoints"]["owner_share"] == pytest.approx(100)
    crowded = register_coco(coco(scene(1, [5, 65], crowd=True)))
    share = {}
    for use in ("False", "True"):
        options = ["MODEL.ASSEMBLER.EVIDENCE", "identity", "EVAL.GT_BOX_FILTER", use]
        cfg = paper_config("MultiPoseNet/PRN_poses.yaml", options)
        share[use] = evaluate_annotations(cfg, identity, crowded)["keypoints"]["owner_share"]
    assert share["True"] == pytest.approx(100) and share["False"] < 80


def test_where_annotations_are_evaluated(register_coco, identity, options, paper_config):
    with_images = register_coco(coco(scene(1, [5])))
    register_own_datasets(paper_config("MultiPoseNet/PRN_poses.yaml", options))
    assert evaluates_annotations(identity, with_images)
    assert evaluates_annotations(torch.nn.Linear(1, 1), "people")
    assert not evaluates_annotations(torch.nn.Linear(1, 1), with_images)
    with pytest.raises(ValueError, match="'nobody' is not registered"):
        evaluates_annotations(torch.nn.Linear(1, 1), "nobody")


def test_half_precision_keeps_what_it_cannot_hold(tmp_path, paper_config):
    cfg = paper_config("MultiPoseNet/UCR_poses.yaml")
    model = build_model(cfg)
    prior = model.assembler.evidence.network
    prior.num_people.fill_(142_513.0)
    prior.label_sum.copy_(torch.rand_like(prior.label_sum))
    prior.label_sum[0, 0, 0] = 3.0
    path = tmp_path / "ucr.pth"
    torch.save({"model": {**model.state_dict(), "backbone.weight": torch.ones(5)}}, path)
    save_half(str(path), str(tmp_path / "half.pth"))
    saved = torch.load(tmp_path / "half.pth", weights_only=True)["model"]
    assert set(saved) == set(model.state_dict())
    kinds = {name.split(".")[-1]: value.dtype for name, value in saved.items()}
    assert kinds["label_sum"] == torch.float16 and kinds["num_people"] == torch.float32
    loaded = load_assembler(cfg, str(tmp_path / "half.pth")).evidence.network
    assert loaded.label_sum.dtype == torch.float32
    torch.testing.assert_close(loaded.prior(), prior.prior(), rtol=1e-3, atol=1e-7)
    torch.save({"model": {"backbone.weight": torch.ones(5)}}, path)
    with pytest.raises(ValueError, match="holds no assembler"):
        save_half(str(path), str(tmp_path / "none.pth"))
    assert not (tmp_path / "none.pth").exists()
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"ucr\.pth is not a checkpoint"):
        save_half(str(path), str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_half("nowhere.pth", str(tmp_path / "none.pth"))


def test_half_precision_keeps_the_settings(tmp_path, paper_config):
    """Those of the assembler: a converted file cut down to it is not for other settings."""
    cfg = paper_config("MultiPoseNet/UCR_poses.yaml")
    path, half = tmp_path / "converted.pth", tmp_path / "half.pth"
    needed = {"MODEL.PRN.CROP": [56, 36]}
    settings = {"assembler.": needed, "backbone.bottom_up.": {"INPUT.FORMAT": "BGR"}}
    torch.save({"model": build_model(cfg).state_dict(), "settings": settings}, path)
    save_half(str(path), str(half))
    assert torch.load(half, weights_only=True)["settings"] == {"assembler.": needed}
    load_assembler(cfg, str(half))
    cfg.MODEL.ASSEMBLER.WEIGHTS = str(half)
    assert filled_settings(build_model(cfg)) == {"assembler.": needed}
    cfg.MODEL.ASSEMBLER.WEIGHTS = ""
    needed["MODEL.PRN.CROP"] = [28, 18]
    torch.save({"model": build_model(cfg).state_dict(), "settings": settings}, path)
    save_half(str(path), str(half))
    with pytest.raises(ValueError, match=r"MODEL\.PRN\.CROP is "):
        load_assembler(cfg, str(half))
    torch.save({"model": build_model(cfg).state_dict(), "settings": [1]}, path)
    with pytest.raises(ValueError, match="its 'settings' are no table"):
        save_half(str(path), str(tmp_path / "none.pth"))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["converted.pth", "half.pth"]
