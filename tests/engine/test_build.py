"""Values that no model can be built from or trained with: one line that names the key."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model, check_training_config
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.engine.trainer import PoseTrainer

DEMO = str(Path(__file__).resolve().parents[2] / "configs" / "quick" / "demo.yaml")
MODEL_MISTAKES = {
    "MODEL.META_ARCHITECTURE Nothing": r"MODEL\.META_ARCHITECTURE is 'Nothing'; .*MultiPoseNet",
    "MODEL.BACKBONE.NAME Nothing": r"MODEL\.BACKBONE\.NAME is 'Nothing'; .*PosePyramids",
    "MODEL.POSE_FPN.BOTTOM_UP x": r"MODEL\.POSE_FPN\.BOTTOM_UP is 'x'; .*build_resnet_backbone",
    "MODEL.KP_SUBNET.NAME x": r"MODEL\.KP_SUBNET\.NAME is 'x'; .*KeypointSubnet",
    "MODEL.ASSEMBLER.NAME x": r"MODEL\.ASSEMBLER\.NAME is 'x'; .*PoseAssembler",
    "MODEL.RESNETS.NORM XX": r"'XX', which MODEL\.RESNETS\.NORM names",
    "MODEL.RESNETS.DEPTH 19": r"19, which MODEL\.RESNETS\.DEPTH names",
    "MODEL.RETINANET.IN_FEATURES ['p3','p9']": r"'p9', which MODEL\.RETINANET\.IN_FEATURES names",
    "MODEL.PRN.CROP (56,)": r"MODEL\.PRN\.CROP is \(56,\)",
    "MODEL.PRN.CROP (56,0)": r"MODEL\.PRN\.CROP is \(56, 0\)",
    "MODEL.DEVICE cuda:99": r"MODEL\.DEVICE is 'cuda:99', but PyTorch sees \d+ GPUs",
    "MODEL.DEVICE gpu": r"MODEL\.DEVICE is 'gpu'",
    # Assertions without a message still show what was asked for.
    "MODEL.FPN.FUSE_TYPE x": r"config: AssertionError .*fpn\.py: assert fuse_type in",
}
TRAINING_MISTAKES = {
    "SOLVER.IMS_PER_BATCH 0": r"SOLVER\.IMS_PER_BATCH is 0",
    "SOLVER.MAX_ITER 0": r"SOLVER\.MAX_ITER is 0",
    "SOLVER.CHECKPOINT_PERIOD 0": r"SOLVER\.CHECKPOINT_PERIOD is 0",
    "SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE float16": (
        r"SOLVER\.AMP\.DTYPE float16 needs a GPU, but MODEL\.DEVICE is 'cpu'.*bfloat16"
    ),
    "SOLVER.AMP.DTYPE half": r"SOLVER\.AMP\.DTYPE is 'half'; choose one of bfloat16, float16",
    "SOLVER.ACCUMULATION 0": r"SOLVER\.ACCUMULATION is 0",
    "SOLVER.IMS_PER_BATCH 4 SOLVER.ACCUMULATION 3": r"IMS_PER_BATCH is 4: .*ACCUMULATION 3",
    "SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_TYPE model": (
        r"CLIP_GRADIENTS\.CLIP_TYPE is 'model'; choose one of value, norm, full_model"
    ),
    "SOLVER.STEPS (6,9) SOLVER.MAX_ITER 9": r"SOLVER\.STEPS is \(6, 9\): rising .*MAX_ITER 9 are",
    "SOLVER.STEPS (6,4) SOLVER.MAX_ITER 9": r"SOLVER\.STEPS is \(6, 4\): rising",
    "SOLVER.EMA.DECAY 1.0": r"SOLVER\.EMA\.DECAY is 1\.0: it must be 0 \(off\) or below 1",
}


@pytest.mark.parametrize("mistake", MODEL_MISTAKES)
def test_model_mistakes(mistake, paper_config):
    cfg = paper_config("quick/demo.yaml", ["MODEL.PRN.NODES", "8", *mistake.split(" ", 1)])
    with pytest.raises(ValueError, match=MODEL_MISTAKES[mistake]) as caught:
        build_pose_model(cfg)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["MODEL.FPN.OUT_CHANNELS", "48"],
            r"MODEL\.FPN\.NORM or .*RETINANET\.NORM is GN, 32 groups, and 48 channels "
            r"\(MODEL\.FPN\.OUT_CHANNELS\) are no multiple of it",
        ),
        (["MODEL.POSE_REGRESSION.HEATMAP.DIM", "20"], r"20 channels \(.*HEATMAP\.DIM"),
        (
            ["MODEL.RETINANET.NORM", "groups"],
            r"called 'groups', which MODEL\.RETINANET\.NORM names",
        ),
        (["MODEL.FPN.NORM", "LayerNorm"], r"called 'LayerNorm', which MODEL\.FPN\.NORM names"),
    ],
)
def test_norms_that_do_not_fit_are_named(options, message, paper_config):
    with pytest.raises(ValueError, match=message):
        build_pose_model(paper_config("PoseRegression/R_18_small.yaml", options))


def test_trainer_and_predictor_build_alike(paper_config):
    cfg = paper_config("quick/demo.yaml", ["MODEL.RESNETS.NORM", "XX"])
    for build in (PoseTrainer.build_model, lambda cfg: ImagePredictor(cfg, "weights.pth")):
        with pytest.raises(ValueError, match=r"'XX', which MODEL\.RESNETS\.NORM names"):
            build(cfg)


@pytest.mark.parametrize("mistake", TRAINING_MISTAKES)
def test_training_mistakes(mistake, paper_config):
    cfg = paper_config("quick/demo.yaml", mistake.split(" "))
    for check in (check_training_config, PoseTrainer):
        with pytest.raises(ValueError, match=TRAINING_MISTAKES[mistake]):
            check(cfg)


def test_steps_that_detectron2_takes_are_no_mistake(paper_config):
    for options in (
        ["SOLVER.STEPS", "(3, 6, 12)"],  # it leaves out the last
        ["SOLVER.STEPS", "()"],
        ["SOLVER.STEPS", "(6, 9)", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
    ):
        check_training_config(paper_config("quick/demo.yaml", ["SOLVER.MAX_ITER", "9", *options]))


@pytest.mark.parametrize("processes", [2, 3])
def test_batch_is_shared_out_evenly(processes, paper_config, monkeypatch):
    cfg = paper_config("quick/demo.yaml", ["SOLVER.IMS_PER_BATCH", "4"])
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    if processes == 2:
        check_training_config(cfg)
    else:
        with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 4: .* multiple of the 3"):
            check_training_config(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.PIXEL_MEAN", "[]"),
        ("MODEL.PIXEL_STD", "[1.0]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[['a']]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[-1.0]]"),
        # Detectron2's own errors, which name no key.
        ("MODEL.FPN.FUSE_TYPE", "max"),
        ("MODEL.RESNETS.DEPTH", "17"),
    ],
)
def test_values_that_nothing_is_built_from_name_their_key(key, value, paper_config):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        build_pose_model(paper_config("quick/demo.yaml", [key, value]))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "hello", "_BASE_: empty.yaml\n", "VERSION: x"])
def test_files_that_are_no_configs(tmp_path, text):
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml: .*not a config of KEY: VALUE lines"):
        load_config(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("STAGES.PERSON.SOLVER.MAX_ITER.X", "1", "no config key STAGES.PERSON.SOLVER.MAX_ITER.X"),
        ("SOLVER.MAX_ITER.X", "1", "no config key SOLVER.MAX_ITER.X; near: SOLVER.MAX_ITER"),
        ("MODEL.RESNETS", "50", "MODEL.RESNETS is a section of keys, not one value"),
    ],
)
def test_keys_inside_values_and_values_for_sections(key, value, message):
    with pytest.raises(ValueError) as caught:
        load_config(DEMO, [key, value])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_configs_of_a_newer_and_an_older_detectron2_load(tmp_path, caplog):
    saved = load_config(DEMO).dump()
    lines = [line for line in saved.splitlines() if not line.startswith("FLOAT32_PRECISION")]
    older, newer = tmp_path / "older.yaml", tmp_path / "newer.yaml"
    older.write_text("\n".join(lines))
    newer.write_text("\n".join(["FLOAT32_PRECISION: ''", *lines]))
    assert load_config(str(older)) == load_config(str(newer))
    if "FLOAT32_PRECISION" not in load_config(""):
        with caplog.at_level(logging.WARNING):
            load_config(str(newer))
        assert "FLOAT32_PRECISION" in caplog.text
