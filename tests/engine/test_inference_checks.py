"""Keys of inference that do nothing are told, what a system cannot do is refused, early."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from mpn_d2.engine.inference_checks import idle_keys
from mpn_d2.engine.inference_model import check_inference_config
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.modeling.meta_arch.common import build_box_suppression

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NETWORK = "MultiPoseNet/R_18_small.yaml"
TAGS = "UnifiedAssociation/AE.yaml"
TTA = ["TTA.ENABLED", "True"]
POSES = ["TTA.FUSION", "poses", "OKS_NMS.MODE", "hard"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["TTA.FLIP", "True"], "TTA.FLIP: set, but without effect; set TTA.ENABLED True"),
        (["TTA.SCALES", "[2.0]", "TTA.CROPS", "2"], "TTA.SCALES, TTA.CROPS: .*TTA.ENABLED True"),
        (["TTA.CROP_OVERLAP", "0.5"], "TTA.CROP_OVERLAP: .*TTA.ENABLED True"),
        (["TTA.BOXES", "base"], "TTA.BOXES: .*TTA.ENABLED True, or ENSEMBLE.CONFIGS"),
        (TTA, "TTA.ENABLED is True, but there is no second view"),
        ([*TTA, "TTA.CROPS", "1"], "no second view: .*TTA.CROPS .2 or more"),
        (
            [*TTA, "TTA.FLIP", "True", "TTA.CROP_OVERLAP", "0.5"],
            "TTA.CROP_OVERLAP: .*set TTA.CROPS 2 or more",
        ),
        (
            [*TTA, "TTA.FLIP", "True", *POSES, "TTA.MAP_SCALE", "2.0"],
            "MAP_SCALE: .*FUSION maps",
        ),
        (["OKS_NMS.THRESH", "0.5"], "OKS_NMS.THRESH: .*set OKS_NMS.MODE hard or soft"),
        (["REFINE.MERGE", "fill"], "REFINE.MERGE: .*set REFINE.CONFIG"),
        (["MODEL.RETINANET.SOFT_NMS_SIGMA", "0.3"], "SOFT_NMS_SIGMA: .*NMS soft_gaussian"),
        (["SPEED.DTYPE", "bfloat16"], "SPEED.DTYPE: .*SPEED.MODE half or fastest"),
        (["TEST.REFINE", "True"], "TEST.REFINE: .*MultiPoseNet refines by REFINE.CONFIG"),
        (["TEST.FLIP", "True"], "TEST.FLIP: .*takes TTA.ENABLED and TTA.FLIP"),
        (["TEST.MULTISCALE", "True"], "TEST.MULTISCALE: .*takes TTA.ENABLED and TTA.SCALES"),
    ],
)
def test_keys_without_effect_are_told_in_one_line(paper_config, caplog, options, words):
    with caplog.at_level(logging.WARNING):
        check_inference_config(paper_config(NETWORK, options))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(words, record.getMessage())


@pytest.mark.parametrize(
    "options",
    [
        [],
        [*TTA, "TTA.FLIP", "True", "TTA.BOXES", "base", "TTA.MAP_SCALE", "2.0"],
        [*TTA, "TTA.SCALES", "[1.5]"],
        [*TTA, "TTA.CROPS", "2", "TTA.CROP_OVERLAP", "0.5"],
        ["ENSEMBLE.CONFIGS", "['a.yaml']", "ENSEMBLE.WEIGHTS", "['a.pth']", "TTA.BOXES", "base"],
        ["OKS_NMS.MODE", "hard", "OKS_NMS.THRESH", "0.5"],
        ["MODEL.RETINANET.NMS", "soft_gaussian", "MODEL.RETINANET.SOFT_NMS_SIGMA", "0.3"],
        ["REFINE.CONFIG", "a.yaml", "REFINE.MERGE", "fill"],
    ],
)
def test_keys_with_an_effect_are_not(paper_config, options):
    assert idle_keys(paper_config(NETWORK, options)) == []


def test_no_config_has_keys_without_effect(paper_config):
    names = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
    assert len(names) > 80
    assert {n: lines for n in names if (lines := idle_keys(paper_config(n)))} == {}


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (TAGS, ["EVAL.HEATMAPS", "True"], r"EVAL\.HEATMAPS is True .--heatmaps.*no heatmaps"),
        (TAGS, [*TTA, "TTA.FLIP", "True"], r"TTA\.FUSION maps.*AssociativeEmbedding.*FUSION poses"),
        (
            "MultitaskRCNN/R_50_multi.yaml",
            ["ENSEMBLE.CONFIGS", "['a.yaml']", "ENSEMBLE.WEIGHTS", "['a.pth']"],
            r"TTA\.FUSION maps.*GeneralizedRCNN.*FUSION poses",
        ),
        (
            "quick/single_person_drawn.yaml",
            ["OKS_NMS.MODE", "hard"],
            "SINGLE_PERSON.ENABLED is True: TTA, .*REFINE.CONFIG: switch them off",
        ),
        (NETWORK, ["REFINE.MERGE", "mean"], "REFINE.MERGE is 'mean'; choose one of average"),
        (NETWORK, ["REFINE.BOX_SCORE_THRESH", "2.0"], "REFINE.BOX_SCORE_THRESH is 2.0"),
        (NETWORK, ["EVAL.MASK_THRESH", "7.0"], "EVAL.MASK_THRESH is 7.0: 0 to 1 is needed"),
        (NETWORK, ["EVAL.CONFIDENCE_THRESH", "2.0"], "EVAL.CONFIDENCE_THRESH is 2.0: 0 to 1"),
        (
            NETWORK,
            ["ENSEMBLE.CONFIGS", "[1]", "ENSEMBLE.WEIGHTS", "['a.pth']"],
            r"ENSEMBLE\.CONFIGS is \[1\]: names of files",
        ),
        (
            NETWORK,
            ["ENSEMBLE.CONFIGS", "['a.yaml']", "ENSEMBLE.WEIGHTS", "[None]"],
            r"ENSEMBLE\.WEIGHTS is \[None\]: .* another type",
        ),
        (NETWORK, ["EVAL.TASKS", "['boxes']"], r"EVAL\.TASKS \['boxes'\]: give one or more of"),
        (NETWORK, ["EVAL.VOC_COMPETITION", "comp7"], "EVAL.VOC_COMPETITION is 'comp7': give"),
        (NETWORK, ["EVAL.ALGORITHM_NAME", "a/b"], "EVAL.ALGORITHM_NAME is 'a/b': it becomes"),
        (NETWORK, ["EVAL.OKS_OVERLAP", "[0.3, 0.1]"], r"EVAL\.OKS_OVERLAP is \[0\.3, 0\.1\]: ri"),
        (NETWORK, ["INPUT.MAX_SIZE_TEST", "0"], "INPUT.MAX_SIZE_TEST is 0: at least 1 is needed"),
    ],
)
def test_what_a_system_cannot_do_is_refused_before_it_is_built(
    paper_config, config, options, words
):
    with pytest.raises(ValueError, match=words):
        check_inference_config(paper_config(config, options))


def test_boxes_are_suppressed_as_in_the_paper(paper_config):
    suppression = build_box_suppression(paper_config("MultiPoseNet/R_50.yaml"))
    assert (suppression.method, suppression.threshold) == ("hard", 0.3)


def test_an_assembler_by_itself_is_no_predictor(paper_config):
    """It says so at once: its annotations are not the mistake."""
    with pytest.raises(ValueError, match="PoseAssembly takes no images: give the config of a whol"):
        ImagePredictor(paper_config("MultiPoseNet/Assembler_coco.yaml"), "some.pth")
