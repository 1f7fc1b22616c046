"""The model that a config means at test time: plain, with views, members, suppression."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from mpn_d2.config import load_config
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.inference_model import PoseInference, build_inference_model, build_members
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / "configs" / "quick" / "demo.yaml")
# A random model is unsure of everything: every box and cell counts.
SMALL = [
    *("MODEL.PRN.NODES", "8", "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "6"),
    *("MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0", "MODEL.PEAKS.THRESH", "0.0001"),
]
LEARNED = [
    *("MODEL.ASSEMBLER.EVIDENCE", "learned", "MODEL.ASSEMBLER.SAMPLES", "images"),
    *("MODEL.ASSEMBLER.WEIGHTS", "assembler_coco.pth", "MODEL.ASSEMBLER.FALLBACK", "argmax"),
]
TTA = ["TTA.ENABLED", "True"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights")
    model = build_model(load_config(CONFIG, SMALL))
    # A network from scratch sees the same everywhere; sharper maps have peaks to find.
    with torch.no_grad():
        model.keypoint_head.predictor.weight *= 30
    PoseCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture(scope="module")
def build(weights: str):
    return lambda *options: build_inference_model(load_config(CONFIG, [*SMALL, *options]), weights)


@pytest.fixture(scope="module")
def images(sample_dir: Path) -> list[torch.Tensor]:
    """Three sizes, none of them a multiple of anything."""
    file = str(sorted((sample_dir / "train").glob("*.jpg"))[0])
    image = torch.from_numpy(read_pose_image(file, "BGR").transpose(2, 0, 1).copy())
    return [image[:, :301, :411], image[:, 10:, 50:251], image[:, ::3, ::3].contiguous()]


def inputs(*images: torch.Tensor) -> list[dict]:
    return [{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images]


def fields(result: dict) -> dict[str, torch.Tensor]:
    people = result["instances"]
    return {
        "boxes": people.pred_boxes.tensor,
        "scores": people.scores,
        "pose_scores": people.pose_scores,
        "keypoints": people.pred_keypoints,
        "sem_seg": result["sem_seg"],
    }


def assert_same(one: dict, other: dict, tolerance: float) -> None:
    assert one["instances"].image_size == other["instances"].image_size
    for name, value in fields(one).items():
        torch.testing.assert_close(
            value, fields(other)[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_plain_config_is_the_bare_network(build):
    assert not isinstance(build(), PoseInference)
    assert isinstance(build(*TTA), PoseInference)
    assert not build().training and not build(*TTA).training


@pytest.mark.parametrize("fusion", ["maps", "poses"])
def test_identity_is_the_plain_pass_exactly(build, weights, images, fusion):
    plain = ImagePredictor(load_config(CONFIG, SMALL), weights)
    arrays = [image.flip(0).permute(1, 2, 0).numpy() for image in images]
    # With poses, a threshold that nothing reaches.
    options = ["TTA.FUSION", fusion, *(["OKS_NMS.MODE", "none"] if fusion == "maps" else [])]
    options += ["OKS_NMS.MODE", "hard", "OKS_NMS.THRESH", "1.0"] if fusion == "poses" else []
    model = build(*TTA, *options, "TEST.DETECTIONS_PER_IMAGE", "6")
    for want, got in zip(plain(arrays), model(inputs(*images)), strict=True):
        assert len(want["instances"]) > 2 and want["instances"].pred_keypoints.any()
        if fusion == "poses":
            order = want["instances"].pose_scores.argsort(descending=True, stable=True)
            want["instances"] = want["instances"][order]
        assert_same(want, got, 0.0)


ASSEMBLERS = {
    "prn": ["MODEL.ASSEMBLER.FALLBACK", "argmax"],
    "prn of heatmaps": ["MODEL.PRN.INPUT_MODE", "heatmap"],
    "learned": LEARNED,
}


@pytest.mark.parametrize("assembler", ASSEMBLERS.values(), ids=ASSEMBLERS)
@pytest.mark.parametrize(
    "more", [[], ["TTA.SCALES", "[1.0, 0.6]"], ["TTA.CROPS", "2"], ["TTA.CROPS", "3"]]
)
def test_a_mirrored_image_has_the_mirrored_result(build, images, more, assembler):
    assert_mirrors(build(*TTA, "TTA.FLIP", "True", *more, *assembler), images)


def assert_mirrors(model: PoseInference, images: list[torch.Tensor]) -> None:
    flip = list(get_skeleton("coco").flip_indices)
    for image in images:
        width = image.shape[2]
        plain, turned = model(inputs(image))[0], model(inputs(image.flip(-1)))[0]
        people = turned["instances"]
        boxes = people.pred_boxes.tensor.clone()
        people.pred_boxes.tensor[:, 0::2] = width - boxes[:, [2, 0]]
        joints = people.pred_keypoints[:, flip].clone()
        joints[..., 0] = torch.where((joints != 0).any(-1), width - joints[..., 0], joints[..., 0])
        people.pred_keypoints = joints
        turned["sem_seg"] = turned["sem_seg"].flip(-1)
        assert len(people) > 2 and joints.any()
        assert_same(plain, turned, 1e-4 * width)
        for name in ("scores", "pose_scores", "sem_seg"):
            torch.testing.assert_close(fields(plain)[name], fields(turned)[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        [*TTA, "TTA.FLIP", "True", "TTA.SCALES", "[1.0, 1.3]", "TTA.CROPS", "2"],
        [*TTA, "TTA.FLIP", "True", "TTA.FUSION", "poses", "OKS_NMS.MODE", "soft"],
        ["OKS_NMS.MODE", "hard"],
    ],
    ids=["maps", "poses", "plain"],
)
def test_a_batch_of_three_sizes_equals_one_by_one(build, images, options):
    model = build(*options)
    together = model(inputs(*images))
    for image, result in zip(images, together, strict=True):
        assert result["instances"].image_size == tuple(image.shape[1:])
        assert result["sem_seg"].shape == (2, *image.shape[1:])
        assert len(result["instances"]) <= 6
        # Pixels of the image.
        assert_same(result, model(inputs(image))[0], 2e-3)
    assert model([]) == []


def test_results_in_another_size_than_the_image(build, images):
    model = build(*TTA, "TTA.FLIP", "True")
    x = inputs(images[2])[0]
    small, large = (
        model([x])[0],
        model([{**x, "height": 2 * x["height"], "width": 3 * x["width"]}])[0],
    )
    scale = torch.tensor([3.0, 2.0])
    assert large["sem_seg"].shape == (2, 2 * x["height"], 3 * x["width"])
    torch.testing.assert_close(
        large["instances"].pred_boxes.tensor, small["instances"].pred_boxes.tensor * scale.repeat(2)
    )
    torch.testing.assert_close(
        large["instances"].pred_keypoints[..., :2],
        small["instances"].pred_keypoints[..., :2] * scale,
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 2000), (700, 1)])
def test_tiny_and_thin_images(build, size):
    model = build(*TTA, "TTA.FLIP", "True", "TTA.SCALES", "[1.0, 0.5]", "TTA.CROPS", "2")
    result = model(inputs(torch.randint(0, 255, (3, *size), dtype=torch.uint8)))[0]
    assert result["sem_seg"].shape == (2, *size) and torch.isfinite(result["sem_seg"]).all()
    assert torch.isfinite(result["instances"].pred_keypoints).all()


def test_heatmaps_on_demand_span_the_image(build, images):
    x = inputs(images[0])[0]
    small = {**x, "image": x["image"][:, :96, :131].contiguous()}  # a network input
    for given, options in ((small, []), (x, [*TTA, "TTA.FLIP", "True"])):
        result = build(*options, "EVAL.HEATMAPS", "True")([given])[0]
        # 96 x 131 pixels (of 301 x 411), cells of 4.
        assert result["heatmaps"].shape == (get_skeleton("coco").num_keypoints, 24, 33)
        assert "heatmaps" not in build(*options)([given])[0]


def test_members_join(build, weights, images, tmp_path):
    torch.manual_seed(2)
    options = ["MODEL.RESNETS.DEPTH", "34", *SMALL]
    config = tmp_path / "other.yaml"
    cfg = load_config(CONFIG, [*options, "INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", "64"])
    config.write_text(cfg.dump())
    PoseCheckpointer(build_model(cfg), str(tmp_path)).save("other")
    keys = ["ENSEMBLE.CONFIGS", f"['{config}']", "ENSEMBLE.WEIGHTS"]
    both = build(*keys, f"['{tmp_path / 'other.pth'}']")
    assert [v.image_format for v in both.viewers] == ["BGR", "RGB"]
    result, plain = (model(inputs(images[0]))[0] for model in (both, build()))
    assert result["sem_seg"].shape == plain["sem_seg"].shape
    assert not torch.allclose(result["sem_seg"], plain["sem_seg"], atol=1e-5)

    def problem(*options: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            build(*options)
        return str(error.value)

    assert "ENSEMBLE.WEIGHTS 0" in problem(*keys[:2])
    assert "other.yaml: " in problem(*keys, "['gone.pth']") and "gone.pth" in problem(
        *keys, "['gone.pth']"
    )
    assert "gone.yaml" in problem("ENSEMBLE.CONFIGS", "['gone.yaml']", *keys[2:], "['x.pth']")
    message = problem(*keys, f"['{weights}']")
    assert "other.yaml" in message and "does not fit this config" in message
    crowd = tmp_path / "crowd.yaml"
    crowd.write_text(load_config(CONFIG, [*SMALL, "MODEL.SKELETON", "crowdpose"]).dump())
    message = problem("ENSEMBLE.CONFIGS", f"['{crowd}']", *keys[2:], f"['{weights}']")
    assert "crowd.yaml" in message and "MODEL.SKELETON" in message


def test_boxes_are_refined_in_the_end(build, images, tmp_path):
    torch.manual_seed(3)
    config = tmp_path / "single.yaml"
    small = ["SINGLE_PERSON.SIZE", "(64, 48)", "MODEL.FPN.OUT_CHANNELS", "16", *SMALL[2:4]]
    cfg = load_config(str(REPO / "configs" / "quick" / "single_person_drawn.yaml"), small)
    config.write_text(cfg.dump())
    PoseCheckpointer(build_model(cfg), str(tmp_path)).save("single")
    keys = ["REFINE.CONFIG", str(config), "REFINE.WEIGHTS", str(tmp_path / "single.pth")]
    keys += ["REFINE.BOX_SCORE_THRESH", "0.0"]
    plain, refined = (
        build(*k)(inputs(images[0]))[0] for k in (TTA, [*keys, "REFINE.MERGE", "replace"])
    )
    for name in ("boxes", "scores", "sem_seg"):
        assert torch.equal(fields(plain)[name], fields(refined)[name])
    joints = fields(refined)["keypoints"]
    assert not torch.allclose(joints, fields(plain)["keypoints"])
    # Places are those of the image, in the reach of the boxes' crops.
    boxes = fields(refined)["boxes"]
    middle, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert ((joints[..., :2] - middle[:, None]).abs() <= reach[:, None, None]).all()
    assert build(*keys).refiner.model.flip_indices is None
    flipped = [*TTA, "TTA.FLIP", "True", "OKS_NMS.MODE", "hard", *keys, "REFINE.MERGE", "pool"]
    model = build(*flipped)
    # The single-person network sees mirrored crops, too.
    assert model.refiner.model.flip_indices == get_skeleton("coco").flip_indices
    together = model(inputs(*images))
    for image, result in zip(images, together, strict=True):
        assert 0 < len(result["instances"]) <= 6
        assert_same(result, model(inputs(image))[0], 2e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*TTA, "TTA.FUSION", "mean"], "TTA.FUSION is 'mean'"),
        ([*TTA, "TTA.BOXES", "all"], "TTA.BOXES is 'all'"),
        ([*TTA, "TTA.FUSION", "poses"], "set OKS_NMS.MODE hard or soft"),
        ([*TTA, "TTA.SCALES", "[-1.0]"], "TTA.SCALES"),
        ([*TTA, "TTA.MAP_SCALE", "9.0"], "TTA.MAP_SCALE is 9.0"),
        (["REFINE.CONFIG", "x.yaml", "REFINE.MERGE", "pool"], "set OKS_NMS.MODE hard or soft"),
        (["REFINE.CONFIG", "gone.yaml", "REFINE.WEIGHTS", "x.pth"], "REFINE.CONFIG: .*gone.yaml"),
        (["REFINE.CONFIG", "x.yaml", "REFINE.MERGE", "mean"], "REFINE.MERGE is 'mean'"),
        (["OKS_NMS.MODE", "off"], "OKS_NMS.MODE is 'off'"),
        (["OKS_NMS.THRESH", "2.0"], "OKS_NMS.THRESH is 2.0"),
        (["TEST.AUG.ENABLED", "True"], "set TTA.ENABLED True"),
        ([*TTA, "EVAL.BOX_SOURCE", "gt"], "EVAL.BOX_SOURCE is 'gt'"),
        ([*TTA, "EVAL.ERROR_BUDGET", "True"], "EVAL.ERROR_BUDGET"),
        (["EVAL.BOX_SOURCE", "gt", "EVAL.ERROR_BUDGET", "True"], "EVAL.BOX_SOURCE is 'gt'"),
        (["REFINE.WEIGHTS", "x.pth"], "REFINE.WEIGHTS is given without REFINE.CONFIG"),
        (["ENSEMBLE.CONFIGS", "['quick/demo.yaml']", "ENSEMBLE.WEIGHTS", "['']"], "is empty"),
        (["MODEL.PEAKS.THRESH", "5.0"], "MODEL.PEAKS.THRESH is 5.0: 0 to 1 is needed"),
        (["MODEL.PEAKS.THRESH", "-0.5"], "MODEL.PEAKS.THRESH is -0.5"),
        (["MODEL.PEAKS.MAX_PER_TYPE", "0"], "MAX_PER_TYPE is 0: at least 1 is needed"),
        (["MODEL.ASSEMBLER.BOX_SCORE_THRESH", "9.0"], "BOX_SCORE_THRESH is 9.0"),
        (["MODEL.RETINANET.SCORE_THRESH_TEST", "7.0"], "SCORE_THRESH_TEST is 7.0"),
        (["TEST.DETECTIONS_PER_IMAGE", "-2"], "DETECTIONS_PER_IMAGE is -2"),
        (["MODEL.RETINANET.NMS", "none"], "MODEL.RETINANET.NMS is 'none'"),
        (["MODEL.RETINANET.NMS_THRESH_TEST", "1.5"], "NMS_THRESH_TEST is 1.5"),
    ],
)
def test_keys_that_cannot_be_meant_so(build, options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build(*options)


def test_soft_nms_keeps_more_boxes_with_lower_scores(build, images):
    hard, soft = (
        build("MODEL.RETINANET.NMS", name, "TEST.DETECTIONS_PER_IMAGE", "50")(inputs(images[0]))[0]
        for name in ("hard", "soft_gaussian")
    )
    a, b = (x["instances"].scores for x in (hard, soft))
    assert a[0] == b[0] and b[-1] < a[0]
    assert (b.diff() <= 0).all()
    assert not torch.equal(a, b[: len(a)])


def test_the_best_row_is_a_config(weights, images, tmp_path, paper_config):
    best = paper_config("MultiPoseNet/R_101_best_row.yaml")
    assert best.ENSEMBLE.CONFIGS == ["MultiPoseNet/R_50.yaml"]
    with pytest.raises(ValueError, match=r"ENSEMBLE member .*R_50.*ENSEMBLE\.WEIGHTS is empty"):
        build_members(best)
    # Its steps, with small networks in the place of its own.
    single = tmp_path / "single.yaml"
    small = ["SINGLE_PERSON.SIZE", "(64, 48)", "MODEL.FPN.OUT_CHANNELS", "16", *SMALL[2:4]]
    cfg = load_config(str(REPO / "configs" / "quick" / "single_person_drawn.yaml"), small)
    single.write_text(cfg.dump())
    PoseCheckpointer(build_model(cfg), str(tmp_path)).save("single")
    member = tmp_path / "member.yaml"
    member.write_text(load_config(CONFIG, SMALL).dump())
    cfg = load_config(CONFIG, SMALL)
    for key in ("TTA", "ENSEMBLE", "REFINE", "OKS_NMS"):
        cfg[key] = best[key].clone()
    cfg.ENSEMBLE.CONFIGS, cfg.ENSEMBLE.WEIGHTS = [str(member)], [weights]
    cfg.REFINE.CONFIG, cfg.REFINE.WEIGHTS = str(single), str(tmp_path / "single.pth")
    model = build_inference_model(cfg, weights)
    assert len(model.models) == 2 and model.refiner is not None
    assert sum(map(len, model.plan.views(tuple(images[2].shape[1:])))) == 2 * (5 + 4)
    found = model(inputs(images[2]))[0]
    assert 0 < len(found["instances"]) <= 6
    assert torch.isfinite(found["instances"].pred_keypoints).all()
