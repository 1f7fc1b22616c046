"""The chain of stages on real photographs: weights handed on, resume, evaluation repeated."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine import stages
from mpn_d2.engine.stages import evaluate, train, trained_weights

TINY = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "MODEL.PRN.NODES", "8"]
TINY += ["SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
TINY += ["DATASETS.TEST", "('coco_sample_val',)", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.01"]


@pytest.fixture()
def run(tmp_path, paper_config):
    register_pose_datasets()

    def run(stage="all", options=(), resume=False):
        options = [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), *options]
        cfg = paper_config("quick/demo.yaml", options)
        return cfg, train(cfg, stage, options, resume=resume)

    return run


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_chain_hands_on_weights_and_repeats_its_evaluation(run, tmp_path):
    cfg, results = run()
    out = tmp_path / "out"
    keypoint, person, assembly = (
        weights(out / stage / "model_final.pth") for stage in ("keypoint", "person", "assembly")
    )
    final = weights(out / "model_final.pth")
    assert trained_weights(cfg) == str(out / "model_final.pth")

    def same(a, b, prefix):
        names = [n for n in a if n.startswith(prefix)]
        assert names
        return all(torch.equal(a[n], b[n]) for n in names)

    # Later stages leave what earlier ones learned; each stage moves its own part.
    for prefix in ("backbone.bottom_up.", "backbone.keypoint_fpn.", "keypoint_head."):
        assert same(keypoint, final, prefix)
    for prefix in ("backbone.person_fpn.", "head."):
        assert not same(keypoint, person, prefix) and same(person, final, prefix)
    assert not same(person, assembly, "assembler.") and same(assembly, final, "assembler.")
    # Evaluating the file gives the run's own figures, twice.
    assert set(results["coco_sample_val"]) == {"bbox", "keypoints", "sem_seg"}
    for _ in range(2):
        assert evaluate(cfg, weights=str(out / "model_final.pth")) == results


def test_chain_resumes_where_it_stopped(run, tmp_path, monkeypatch):
    real = stages._train_stage
    done = []

    def dies_in_second(cfg, **kwargs):
        done.append(cfg.OUTPUT_DIR.rsplit("/", 1)[1])
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(cfg, **kwargs)

    monkeypatch.setattr(stages, "_train_stage", dies_in_second)
    with pytest.raises(KeyboardInterrupt):
        run()
    first = (tmp_path / "out/keypoint/model_final.pth").read_bytes()
    _, results = run(resume=True)
    assert done == ["keypoint", "person", "person", "assembly"]
    assert (tmp_path / "out/keypoint/model_final.pth").read_bytes() == first
    assert results["coco_sample_val"]["bbox"]["AP"] >= 0
    # Everything finished: only the evaluation is left.
    _, again = run(resume=True)
    assert done == ["keypoint", "person", "person", "assembly"]
    assert again == results


def test_a_stage_resumes_inside(run, tmp_path):
    options = ["SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "()"]
    run("assembly", [*options, "SOLVER.MAX_ITER", "2"])
    before = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    run("assembly", [*options, "SOLVER.MAX_ITER", "4"], resume=True)
    after = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    assert (before["iteration"], after["iteration"]) == (1, 3)
    # The optimiser went on from its state: Adam counts its steps.
    steps = {s["step"].item() for s in after["trainer"]["_trainer"]["optimizer"]["state"].values()}
    assert steps == {4.0}


def test_assembly_resumed_equals_uninterrupted(run, tmp_path):
    options = ["SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()"]
    run("assembly", [*options, "SOLVER.MAX_ITER", "6", "OUTPUT_DIR", str(tmp_path / "whole")])
    # Stopped after four of the six iterations, at a checkpoint.
    run("assembly", [*options, "SOLVER.MAX_ITER", "6", "OUTPUT_DIR", str(tmp_path / "cut")])
    for name in ("model_final.pth", "model_0000005.pth"):
        (tmp_path / "cut" / name).unlink(missing_ok=True)
    (tmp_path / "cut/last_checkpoint").write_text("model_0000003.pth")
    run(
        "assembly",
        [*options, "SOLVER.MAX_ITER", "6", "OUTPUT_DIR", str(tmp_path / "cut")],
        resume=True,
    )
    a, b = (weights(tmp_path / d / "model_final.pth") for d in ("whole", "cut"))
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_weights_of_another_config_are_refused(run, tmp_path, paper_config):
    run("assembly", ["DATASETS.TEST", "()"])
    cfg = paper_config("quick/demo.yaml", [*TINY, "MODEL.PRN.NODES", "9"])
    with pytest.raises(ValueError, match=r"other shape: assembler\..*\(8, 34272\).*\(9, 34272\)"):
        evaluate(cfg, weights=str(tmp_path / "out/model_final.pth"))
    with pytest.raises(ValueError, match=r"nothing to evaluate: give MODEL\.WEIGHTS"):
        evaluate(cfg, weights="")


def test_nothing_to_train_is_named(run):
    with pytest.raises(ValueError, match="nobody|nothing to train|no person"):
        run("assembly", ["MODEL.PRN.MIN_KEYPOINTS", "99"])
