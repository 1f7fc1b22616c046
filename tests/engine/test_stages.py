"""The chain of stages on real photographs: weights handed on, resume, evaluation repeated."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine import stages
from mpn_d2.engine.stages import evaluate, save_results, stage_config, train, trained_weights
from mpn_d2.engine.trainer import PoseTrainer

TINY = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "MODEL.PRN.NODES", "8"]
TINY += ["SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
TINY += ["DATASETS.TEST", "('coco_sample_val',)", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.01"]

DEMO = str(Path(__file__).resolve().parents[2] / "configs" / "quick" / "demo.yaml")
NO_TEST = ["DATASETS.TEST", "()"]
KEYPOINT_PARTS = ("backbone.bottom_up.", "backbone.keypoint_fpn.", "keypoint_head.")


@pytest.fixture()
def run(tmp_path, paper_config):
    register_pose_datasets()

    def run(stage="all", options=(), resume=False):
        options = [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), *options]
        cfg = paper_config("quick/demo.yaml", options)
        return cfg, train(cfg, stage, options, resume=resume)

    return run


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folder of a finished chain, two iterations a stage, every one saved. To be copied."""
    register_pose_datasets()
    out = tmp_path_factory.mktemp("chain") / "out"
    options = [*TINY, "OUTPUT_DIR", str(out), "SOLVER.CHECKPOINT_PERIOD", "1"]
    train(load_config(DEMO, [*options, *NO_TEST]), "all", options, resume=False)
    return out


@pytest.fixture()
def out(chain, tmp_path):
    """A copy of the finished chain in the folder that `run` works in."""
    return shutil.copytree(chain, tmp_path / "out")


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def iteration(path):
    return torch.load(path, weights_only=True)["iteration"]


def parts_equal(a, b, *prefixes):
    names = [n for n in a if n.startswith(prefixes)]
    assert names
    return all(torch.equal(a[n], b[n]) for n in names)


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
    with pytest.raises(ValueError, match=r"no person to train .* MODEL\.PRN\.MIN_KEYPOINTS"):
        run("assembly", ["MODEL.PRN.MIN_KEYPOINTS", "99"])


# ------------------------------------------------------------- going on where a run stopped


def test_chain_killed_before_model_final_goes_on(run, out):
    for stage in ("person", "assembly"):
        (out / stage / "model_final.pth").unlink()
    (out / "model_final.pth").unlink()
    (out / "person/last_checkpoint").write_text("model_0000001.pth")
    shutil.rmtree(out / "assembly")
    trained = weights(out / "person/model_0000001.pth")
    _, results = run(options=["SOLVER.CHECKPOINT_PERIOD", "1"], resume=True)
    assert iteration(out / "person/model_final.pth") == 1
    final = weights(out / "model_final.pth")
    assert parts_equal(trained, final, *KEYPOINT_PARTS, "head.", "backbone.person_fpn.")
    assert set(results) == {"coco_sample_val"}


def test_a_finished_stage_without_test_dataset_is_left_alone(run, out):
    (out / "assembly/last_checkpoint").write_text("model_0000001.pth")
    (out / "assembly/model_final.pth").unlink()
    folder = ["OUTPUT_DIR", str(out / "assembly")]
    assert run("assembly", [*folder, *NO_TEST], resume=True)[1] == {}
    assert (out / "assembly/last_checkpoint").read_text() == "model_final.pth"
    assert iteration(out / "assembly/model_final.pth") == 1


def test_a_larger_max_iter_trains_on(run, out):
    _, results = run(options=["STAGES.PERSON.SOLVER.MAX_ITER", "4", *NO_TEST], resume=True)
    assert results == {}
    steps = {}
    for stage in ("keypoint", "person", "assembly"):
        saved = torch.load(out / stage / "model_final.pth", weights_only=True)
        state = saved["trainer"]["_trainer"]["optimizer"]["state"]
        steps[stage] = (saved["iteration"], {int(s["step"]) for s in state.values()})
    # Person went on from its Adam state; assembly starts anew on the weights that changed.
    assert steps == {"keypoint": (1, {2}), "person": (3, {4}), "assembly": (1, {2})}
    person, final = weights(out / "person/model_final.pth"), weights(out / "model_final.pth")
    assert parts_equal(person, final, "head.", "backbone.person_fpn.")


def test_a_new_chain_does_not_resume_an_older_one(run, out, monkeypatch):
    def dies(cfg, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "_train_stage", dies)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (out / "person/last_checkpoint").exists()
    assert not (out / "assembly/last_checkpoint").exists()


def test_a_stage_that_starts_anew_forgets_what_it_had(run, out, monkeypatch):
    def dies(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(PoseTrainer, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        run("assembly", NO_TEST)
    assert not (out / "last_checkpoint").exists() and (out / "model_final.pth").exists()


def test_resumed_images_are_those_of_an_uninterrupted_run(run, tmp_path, monkeypatch):
    real = PoseTrainer.build_train_loader
    seen = []

    def recording(cls, cfg, start=0):
        for batch in real(cfg, start=start):
            seen.append([x["image_id"] for x in batch])
            yield batch

    monkeypatch.setattr(PoseTrainer, "build_train_loader", classmethod(recording))
    options = ["SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER", "6", *NO_TEST]
    options += ["DATALOADER.ASPECT_RATIO_GROUPING", "False"]
    run("keypoint", [*options, "OUTPUT_DIR", str(tmp_path / "whole")])
    whole = seen.copy()
    # Twelve images: more than an epoch of the seven, in an order that is not the epoch's again.
    assert len(whole) == 6 and len({i for batch in whole[:4] for i in batch}) == 7
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("model_final.pth", "model_0000005.pth"):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut/last_checkpoint").write_text("model_0000003.pth")
    seen.clear()
    run("keypoint", [*options, "OUTPUT_DIR", str(tmp_path / "cut")], resume=True)
    assert seen == whole[4:]
    a, b = (weights(tmp_path / d / "model_final.pth") for d in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_processes_that_see_different_folders_stop(run, out, monkeypatch):
    """A machine without the folder would start at 0 while the others go on."""
    monkeypatch.setattr(stages.comm, "all_gather", lambda answer: [answer, False])
    for stage in ("all", "assembly"):
        with pytest.raises(ValueError, match=r"OUTPUT_DIR .*out.*folder that all machines share"):
            run(stage, resume=True)
    assert (out / "last_checkpoint").exists()


# ------------------------------------------------------------- weights of a single stage


def test_a_later_stage_needs_trained_parts_under_it(run, out, tmp_path):
    with pytest.raises(
        ValueError, match=r"keypoint parts would stay untrained.*'' has no backbone"
    ):
        run("person", ["OUTPUT_DIR", str(tmp_path / "empty"), *NO_TEST])
    options = ["MODEL.POSE_FPN.SHARED", "True", "MODEL.RETINANET.IN_FEATURES"]
    options += ["['p3', 'p4', 'p5', 'p6', 'p7']", *NO_TEST]
    with pytest.raises(ValueError, match=r"has no backbone\.fpn\."):
        run("person", ["MODEL.WEIGHTS", str(out / "keypoint/model_final.pth"), *options])
    assert not list((tmp_path / "empty").glob("*.pth"))


def test_a_later_stage_starts_from_the_one_before(run, chain, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(chain / "keypoint", out / "keypoint")
    run("person", NO_TEST)
    keypoint, person = weights(chain / "keypoint/model_final.pth"), weights(out / "model_final.pth")
    assert parts_equal(keypoint, person, *KEYPOINT_PARTS)
    assert not parts_equal(keypoint, person, "head.")
    # --resume right after another stage in the same folder is a start, from that stage.
    run("assembly", NO_TEST, resume=True)
    assert parts_equal(person, weights(out / "model_final.pth"), *KEYPOINT_PARTS, "head.")
    assert iteration(out / "model_final.pth") == 1


def test_the_assembly_alone_keeps_the_image_parts_of_a_chain(run, out):
    before = weights(out / "model_final.pth")
    run("assembly", NO_TEST)
    after = weights(out / "model_final.pth")
    assert parts_equal(before, after, *KEYPOINT_PARTS, "head.", "backbone.person_fpn.")
    assert not parts_equal(before, after, "assembler.")


def test_the_assembly_without_weights_only_warns(run, monkeypatch):
    warnings = []
    monkeypatch.setattr(stages.logger, "warning", lambda text, *a: warnings.append(text % a))
    run("assembly", NO_TEST)
    assert len(warnings) == 1 and "keypoint and person parts would stay untrained" in warnings[0]


def test_joint_training_from_untrained_parts_warns(run, out, monkeypatch):
    warnings = []
    monkeypatch.setattr(stages.logger, "warning", lambda text, *a: warnings.append(text % a))
    options = ["MODEL.JOINT_LEVEL", "3", "MODEL.PRN.INPUT_MODE", "heatmap", *NO_TEST]
    options += ["SOLVER.MAX_ITER", "1"]
    fresh = ["OUTPUT_DIR", str(out / "joint")]
    run("joint", [*options, *fresh])
    (text,) = warnings
    assert "JOINT_LEVEL 3 starts from untrained parts (keypoint, person, assembly)" in text
    assert "(--stage all) and give MODEL.WEIGHTS <their OUTPUT_DIR>/model_final.pth" in text
    # Weights of a stage hold all parts, as do those of a run that is resumed.
    run("joint", [*options, *fresh], resume=True)
    run("joint", [*options, *fresh, "MODEL.WEIGHTS", str(out / "model_final.pth")])
    # Level 0 needs none.
    run("joint", [*fresh, *NO_TEST, "SOLVER.MAX_ITER", "1"])
    assert len(warnings) == 1
    # The stages' own trunk alone is no trained part.
    trunk = {n: v for n, v in weights(out / "model_final.pth").items() if "bottom_up" in n}
    torch.save({"model": trunk}, out / "trunk.pth")
    run("joint", [*options, *fresh, "MODEL.WEIGHTS", str(out / "trunk.pth")])
    assert len(warnings) == 2 and "(keypoint, person, assembly)" in warnings[1]


def test_the_assembly_learns_from_trained_parts_only(run, out):
    """Level 1 with all else frozen, of a chain's weights; without weights it stops."""
    options = ["MODEL.TRAIN_PARTS", "['assembly']", "MODEL.JOINT_LEVEL", "1", *NO_TEST]
    with pytest.raises(ValueError, match=r"keypoint and person parts would stay untrained"):
        run("joint", options)
    final = str(out / "model_final.pth")
    before = weights(final)
    run("joint", [*options, "MODEL.WEIGHTS", final, "OUTPUT_DIR", str(out / "fine")])
    after = weights(out / "fine/model_final.pth")
    assert parts_equal(before, after, "backbone.", "keypoint_head.", "head.")


# ------------------------------------------------------------- configs and evaluation


def test_a_stage_option_wins_over_a_global_one_on_the_same_line(paper_config):
    for options in (
        ["SOLVER.BASE_LR", "0.5", "STAGES.PERSON.SOLVER.BASE_LR", "0.25"],
        ["STAGES.PERSON.SOLVER.BASE_LR", "0.25", "SOLVER.BASE_LR", "0.5"],
    ):
        cfg = paper_config("quick/demo.yaml", options)
        assert stage_config(cfg, "person", options).SOLVER.BASE_LR == 0.25
        assert stage_config(cfg, "keypoint", options).SOLVER.BASE_LR == 0.5


def test_a_section_of_a_stage_takes_keys_that_its_file_does_not_set(paper_config):
    options = ["STAGES.PERSON.SOLVER.WARMUP_ITERS", "7"]
    cfg = paper_config("quick/demo.yaml", options)
    assert stage_config(cfg, "person", options).SOLVER.WARMUP_ITERS == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["STAGES.ASSEMBLY.SOLVER.NOTHING", "1"], r"STAGES\.ASSEMBLY: .*SOLVER\.NOTHING"),
        (["STAGES.ASSEMBLY.SOLVER.IMS_PER_BATCH", "0"], r"SOLVER\.IMS_PER_BATCH is 0"),
        (["STAGES.ORDER", "['keypoint', 'box']"], r"STAGES\.ORDER is .*'box'.*person"),
        (["STAGES.ORDER", "[]"], r"STAGES\.ORDER is \[\]"),
    ],
)
def test_the_whole_chain_is_checked_before_it_trains(run, monkeypatch, options, message):
    monkeypatch.setattr(stages, "_train_stage", lambda *a, **k: pytest.fail("a stage trained"))
    with pytest.raises(ValueError, match=message):
        run(options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TTA.FUSION", "mean"], "TTA.FUSION is 'mean'"),
        (["OKS_NMS.MODE", "off"], "OKS_NMS.MODE is 'off'"),
        (["REFINE.CONFIG", "gone.yaml", "REFINE.WEIGHTS", "x.pth"], "REFINE: config gone.yaml"),
        (["REFINE.CONFIG", "quick/single_person_drawn.yaml"], "REFINE: no weights for quick"),
        (
            ["ENSEMBLE.CONFIGS", "['quick/demo.yaml']", "ENSEMBLE.WEIGHTS", "['gone.pth']"],
            r"ENSEMBLE: no such checkpoint: gone\.pth",
        ),
    ],
)
def test_what_evaluation_cannot_do_is_named_before_training(run, monkeypatch, options, message):
    monkeypatch.setattr(stages, "_train_stage", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("all", [*options, "DATASETS.TEST", "('coco_sample_val',)"])


def test_an_error_budget_needs_boxes_and_maps(paper_config, monkeypatch):
    cfg = paper_config("quick/demo.yaml", [*TINY, "EVAL.ERROR_BUDGET", "True"])
    monkeypatch.setattr(stages, "build_inference_model", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(PoseTrainer, "test", None)
    with pytest.raises(ValueError, match=r"EVAL\.ERROR_BUDGET needs .* MultiPoseNet is not"):
        evaluate(cfg, weights="")


def test_evaluation_follows_last_checkpoint(out, paper_config, monkeypatch):
    cfg = paper_config("quick/demo.yaml", [*TINY, "OUTPUT_DIR", str(out)])
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert trained_weights(cfg) == str(out / "model_final.pth")
    (out / "last_checkpoint").write_text("model_0000001.pth")
    assert trained_weights(cfg) == str(out / "model_0000001.pth")
    (out / "last_checkpoint").unlink()
    assert trained_weights(cfg) == str(out / "model_final.pth")
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(out / "none"), "given.pth"
    assert trained_weights(cfg) == "given.pth"


def test_evaluation_says_which_file(out, paper_config, monkeypatch):
    said = []
    monkeypatch.setattr(stages.logger, "info", lambda text, *a: said.append(text % a))
    evaluate(
        paper_config("quick/demo.yaml", [*TINY, "EVAL.TASKS", "['bbox']"]),
        weights=str(out / "model_final.pth"),
    )
    assert said == [f"Evaluating {out / 'model_final.pth'} on coco_sample_val"]


def test_results_without_numbers_leave_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    save_results({"set": {"bbox": {"AP": None}}}, str(path))
    old = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        save_results({"set": {"bbox": {"AP": float("nan")}}}, str(path))
    assert path.read_text() == old and os.listdir(tmp_path) == ["results.json"]
