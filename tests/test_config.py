"""Config keys: all read, all documented, mistakes in one line, every yaml loads and steps."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mpn_d2.config import add_mpn_config, load_config
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.data.loader import association_samples
from mpn_d2.data.person_crops import SinglePersonMapper, training_people
from mpn_d2.engine.build import check_training_config
from mpn_d2.engine.stages import stage_config
from mpn_d2.engine.trainer import PoseTrainer

REPO = Path(__file__).resolve().parents[1]
# Base files hold no architecture of their own.
CONFIGS = sorted(
    str(p.relative_to(REPO / "configs"))
    for p in (REPO / "configs").rglob("*.yaml")
    if not p.name.startswith("Base-")
)
KEY_FILES = (
    "config.py",
    "engine_keys.py",
    "inference_keys.py",
    "rcnn_keys.py",
    "regression_keys.py",
    "sequence_keys.py",
    "speed_keys.py",
)


def leaves(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys += leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name]
    return keys


def added_keys() -> list[str]:
    from detectron2.config import get_cfg

    before = set(leaves(get_cfg()))
    cfg = get_cfg()
    add_mpn_config(cfg)
    return [key for key in leaves(cfg) if key not in before]


def attribute_chains() -> set[str]:
    """Every `a.B.C` in the package's code (not in its texts), aliases of sections resolved."""
    chains = set()
    for path in (REPO / "mpn_d2").rglob("*.py"):
        tree = ast.parse(path.read_text())
        aliases = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = ast.unparse(node.value)
                if re.fullmatch(r"[\w.]*cfg(\.[A-Z_]+)+", value):
                    aliases[node.targets[0].id] = value
        if path.name in KEY_FILES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                head, _, rest = ast.unparse(node).partition(".")
                chains.add(f"{aliases.get(head, head)}.{rest}")
    return chains


def test_every_added_key_is_read_somewhere():
    chains = attribute_chains()
    keys = added_keys()
    assert len(keys) > 30
    for key in keys:
        if key.startswith("STAGES.") and key != "STAGES.ORDER":
            continue  # overlays: any key of the config
        assert any(chain.endswith(f".{key}") for chain in chains), f"nobody reads {key}"


def test_every_added_key_has_a_comment_above_its_default():
    lines = [
        line for name in KEY_FILES for line in (REPO / "mpn_d2" / name).read_text().splitlines()
    ]
    pattern = re.compile(r"    cfg\.([A-Z_.0-9]+) = (?!CN)")
    assigned = {m[1]: i for i, line in enumerate(lines) if (m := pattern.match(line))}
    overlays = ("STAGES.KEYPOINT", "STAGES.PERSON", "STAGES.ASSEMBLY", "STAGES.JOINT")
    overlays += ("STAGES.SCORING",)
    assert set(assigned) == {k for k in added_keys() if not k.startswith(overlays)}
    for key, i in assigned.items():
        assert lines[i - 1].strip().startswith("#"), key


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml not found"):
        load_config("nothing.yaml")
    with pytest.raises(
        ValueError, match=r"no config key MODEL\.PRN\.NODE; near: MODEL\.PRN\.NODES"
    ):
        load_config("", ["MODEL.PRN.NODE", "3"])
    with pytest.raises(ValueError, match="no value"):
        load_config("", ["MODEL.PRN.NODES"])
    with pytest.raises(ValueError, match=r"MODEL\.PRN\.NODES many"):
        load_config("", ["MODEL.PRN.NODES", "many"])
    bad = tmp_path / "bad.yaml"
    bad.write_text("VERSION: 2\nMODEL:\n  PRNN: {NODES: 3}\n")
    with pytest.raises(ValueError, match=r"bad.yaml: no config key MODEL.PRNN"):
        load_config(str(bad))
    bad.write_text("VERSION: 2\nMODEL: [unclosed\n")
    with pytest.raises(ValueError, match=r"bad.yaml"):
        load_config(str(bad))


def test_keys_without_a_value_and_bases_in_a_circle_are_one_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("SOLVER:\n  MAX_ITER:\n")
    with pytest.raises(ValueError, match=r"config key SOLVER\.MAX_ITER has no value"):
        load_config(str(file))
    file.write_text("STAGES: {PERSON: {SOLVER: {IMS_PER_BATCH: null}}}\n")
    with pytest.raises(ValueError, match=r"config key SOLVER\.IMS_PER_BATCH has no value"):
        stage_config(load_config(str(file)), "person", [])
    for text, key in (
        ("SOLVER: {STEPS: [100, null]}", "SOLVER.STEPS"),
        ("SOLVER: {STEPS: [abc]}", "SOLVER.STEPS"),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[32, [null]]]}}", "MODEL.ANCHOR_GENERATOR.SIZES"),
        ("MODEL: {RETINANET: {IN_FEATURES: [3]}}", "MODEL.RETINANET.IN_FEATURES"),
        ("DATASETS: {TRAIN: [null]}", "DATASETS.TRAIN"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"config key {key} is .* of another type"):
            load_config(str(file))
    file.write_text("STAGES: {PERSON: {SOLVER: {STEPS: [null]}}}\n")
    with pytest.raises(ValueError, match=r"config key SOLVER\.STEPS is "):
        stage_config(load_config(str(file)), "person", [])
    file.write_text("_BASE_: config.yaml\n")
    with pytest.raises(ValueError, match="its _BASE_ leads back to itself"):
        load_config(str(file))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "OUTPUT_DIR: !!python/object/apply:subprocess.getoutput ['touch {}']",
        "_BASE_: base.yaml",
        "_BASE_: [base.yaml]",
    ],
)
def test_a_config_executes_nothing(text, tmp_path):
    marker = tmp_path / "acted"
    (tmp_path / "base.yaml").write_text(f"A: !!python/object/apply:os.mkdir ['{marker}']\n")
    file = tmp_path / "config.yaml"
    file.write_text(text.format(marker))
    with pytest.raises(ValueError, match=r"\.yaml: tags that run Python are not read"):
        load_config(str(file))
    assert not marker.exists()


def test_config_files_that_are_none(tmp_path):
    file, aliases = tmp_path / "config.yaml", "a0: &a0 [1, 2]\n"
    for i in range(30):
        aliases += f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n"
    for text, expected in (
        (aliases, "more than 100000 values"),
        ("SOLVER: &a [*a]\n", "more than 100000 values, or an alias within itself"),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
        ("_BASE_: http://127.0.0.1:9/base.yaml\n", "is not a file on this machine"),
        ("_BASE_: missing.yaml\n", r"missing\.yaml, not found"),
        ("_BASE_: .\n", "no regular file"),
        ("_BASE_: fifo\n", "fifo: it is no regular file"),
        ("_BASE_: 3\n", "_BASE_ 3 is not the path of a file"),
        ("? [1]\n: 2\n", "only plain values are read"),
        ("\x00", "no YAML text"),
        ("A: 1\n" * 300_000, "more than 1048576 bytes"),
    ):
        if "fifo" in text:
            os.mkfifo(tmp_path / "fifo")
        file.write_text(text)
        with pytest.raises(ValueError, match=expected) as caught:
            load_config(str(file))
        assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_bases_that_double_at_each_step(tmp_path):
    (tmp_path / "0.yaml").write_text("SEED: 3\n")
    for i in range(1, 30):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i - 1}.yaml, {i - 1}.yaml]\n")
    assert load_config(str(tmp_path / "4.yaml")).SEED == 3
    with pytest.raises(ValueError, match=r"29\.yaml: made of more than 100 files by _BASE_"):
        load_config(str(tmp_path / "29.yaml"))


def test_command_line_wins_over_stage_and_stage_over_base(paper_config):
    options = ["SOLVER.BASE_LR", "0.5", "STAGES.PERSON.SOLVER.STEPS", "(7,)"]
    cfg = paper_config("quick/demo.yaml", options)
    person = stage_config(cfg, "person", options)
    assert person.SOLVER.BASE_LR == 0.5
    assert person.SOLVER.STEPS == (7,)
    assert list(person.MODEL.TRAIN_PARTS) == ["person"]
    assert person.SOLVER.MAX_ITER == cfg.STAGES.PERSON.SOLVER.MAX_ITER != cfg.SOLVER.MAX_ITER
    # Keys that the defaults of the stage do not have, however deep.
    cfg = paper_config("quick/demo.yaml", ["STAGES.ASSEMBLY.TEST.EVAL_PERIOD", "5"])
    assert stage_config(cfg, "assembly", []).TEST.EVAL_PERIOD == 5
    cfg = paper_config("quick/demo.yaml", ["STAGES.ASSEMBLY.TEST.NOTHING", "5"])
    with pytest.raises(ValueError, match=r"STAGES\.ASSEMBLY.*NOTHING"):
        stage_config(cfg, "assembly", [])
    with pytest.raises(ValueError, match=r"unknown stage 'box'.*keypoint, person, assembly"):
        stage_config(cfg, "box", [])
    # A file's ORDER: [null].
    with pytest.raises(ValueError, match=r"unknown stage None .*STAGES\.ORDER"):
        stage_config(cfg, None, [])


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_builds_and_takes_a_step_in_every_stage(config, paper_config):
    register_pose_datasets()
    # Real photographs, tiny, and narrow networks: as deep and as branched as configured.
    options = ["DATASETS.TRAIN", "('coco_sample_train',)", "MODEL.PRN.NODES", "8"]
    options += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96"]
    options += ["INPUT.CROP_SIZE", "64", "MODEL.FPN.OUT_CHANNELS", "32"]
    options += ["MODEL.HOURGLASS.WIDTH", "8", "MODEL.HOURGLASS.GROWTH", "4"]
    options += ["MODEL.SEQUENCE.LSTM1.WIDTH", "16", "MODEL.SEQUENCE.LSTM2.WIDTH", "8"]
    options += ["MODEL.SEQUENCE.MAX_ITERATIONS", "4"]
    options += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    options += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"]
    options += ["MODEL.ROI_MASK_HEAD.CONV_DIM", "16"]
    options += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16, 16)"]
    groups = paper_config(config).MODEL.RESNETS.NUM_GROUPS
    options += ["MODEL.RESNETS.WIDTH_PER_GROUP", str(32 // groups)]
    cfg = paper_config(config, options)
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        # Random weights need norms that are not frozen.
        options += ["MODEL.RESNETS.NORM", "GN"]
        cfg = paper_config(config, options)
    dicts = load_pose_dicts("coco_sample_train", is_train=True)[2:4]
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        return _take_a_step(stage_config(cfg, "joint", options), dicts)
    stages = set(cfg.STAGES.ORDER)
    if "scoring" in stages:
        # It learns from the poses that a random network assembles.
        options += ["MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0", "MODEL.PEAKS.THRESH", "0.0"]
        options += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.001"]
    # A part by itself has nothing to train jointly with.
    for stage in sorted(stages if len(stages) == 1 else stages | {"joint"}):
        _take_a_step(stage_config(cfg, stage, options), dicts)


def _take_a_step(cfg: CfgNode, dicts: list[dict]) -> None:
    """One iteration moves parameters (UCR: its prior), none of a frozen part among them."""
    check_training_config(cfg)
    model = build_model(cfg).train()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    if list(cfg.MODEL.TRAIN_PARTS) == ["assembly"]:
        inputs = association_samples(cfg, dicts)
    elif cfg.SINGLE_PERSON.ENABLED:
        people = training_people(cfg, dicts)
        inputs = [SinglePersonMapper(cfg, is_train=True)(person) for person in people[:2]]
    else:
        inputs = [PoseDatasetMapper(cfg, is_train=True)(d) for d in dicts]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with EventStorage():
        losses = model(inputs)
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        # Exactly the heads that are on, by Detectron2's names.
        expected = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_keypoint"}
        assert set(losses) == expected | ({"loss_mask"} if cfg.MODEL.MASK_ON else set())
    else:
        assert {name.split("_")[1] for name in losses} == set(cfg.MODEL.TRAIN_PARTS)
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert changed.isdisjoint(n for n, p in model.named_parameters() if not p.requires_grad)


def test_yaml_files_have_no_unknown_text():
    # A tuple inside a flow mapping would silently become strings.
    for path in (REPO / "configs").rglob("*.yaml"):
        for line in path.read_text().splitlines():
            if "{" in line and not line.strip().startswith("#"):
                assert "(" not in line, f"{path}: {line}"
