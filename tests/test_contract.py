"""One contract for every system (design 4.12): what goes in, what comes out, whatever the input."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.size_groups import same_in_any_batch

# One small config per system; further systems join here.
RCNN = "MultitaskRCNN/quick_overfit_two.yaml"
SYSTEMS = [
    "MultiPoseNet/R_18_small.yaml",
    "PoseRegression/R_18_small.yaml",
    "UnifiedAssociation/AE.yaml",
    "UnifiedAssociation/unified.yaml",
    "UnifiedAssociation/quick_crowd.yaml",
    RCNN,
]
# Those that predict a mask of all people together, and masks of people one by one.
WITH_SEM_SEG = SYSTEMS[:1]
WITH_MASKS = [RCNN]
# Detectron2's own names of losses, which have no second part.
SHORT_NAMES = {"loss_cls", "loss_mask", "loss_keypoint"}
SMALL = ["MODEL.PRN.NODES", "8", "MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0"]
SMALL += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.005", "TEST.DETECTIONS_PER_IMAGE", "12"]
SMALL += ["MODEL.HOURGLASS.WIDTH", "8", "MODEL.HOURGLASS.STACKS", "2", "MODEL.PEAKS.THRESH", "0.0"]
SMALL += ["MODEL.SEQUENCE.LSTM1.WIDTH", "16", "MODEL.SEQUENCE.LSTM2.WIDTH", "8"]
SMALL += ["MODEL.SEQUENCE.MAX_ITERATIONS", "4", "MODEL.SEQUENCE.OMEGA_TEST", "0.2689"]
SMALL += ["MODEL.SEQUENCE.TAU", "-1.0", "MODEL.HOURGLASS.GROWTH", "4"]
SMALL += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.005", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]
SMALL += ["MODEL.ROI_KEYPOINT_HEAD.REFINE", "both"]
K = 17


@pytest.fixture(params=SYSTEMS)
def system(request) -> str:
    return request.param


@pytest.fixture()
def build(system, paper_config):
    """build() -> a new model of the system with random weights."""

    numbers = itertools.count()

    def build():
        # Few random networks find nobody, or have flat maps whose peaks rounding decides.
        torch.manual_seed(next(numbers))
        model = build_model(paper_config(system, SMALL))
        if system.startswith("PoseRegression"):
            # Fresh outputs are alike everywhere: which of them come first would be chance.
            for output in (model.head.cls_output, model.head.scorer.conv):
                torch.nn.init.normal_(output.weight, std=0.3)
        return model

    return build


@pytest.fixture()
def model(build):
    return build()


def image_input(height: int, width: int, people: int, crowds: int = 0, labelled: bool = True):
    cells = (-(-height // 4), -(-width // 4))
    corner = torch.rand(people, 2) * torch.tensor([width, height]) * 0.5
    boxes = torch.cat([corner, corner + torch.tensor([width, height]) * 0.4], dim=1)
    keypoints = torch.rand(people, K, 3)
    keypoints[:, :, :2] = corner[:, None] + keypoints[:, :, :2] * 0.4 * torch.tensor(
        [width, height]
    )
    keypoints[:, :, 2] = 2.0 if labelled else 0.0
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.zeros(people, dtype=torch.long)
    instances.gt_keypoints = Keypoints(keypoints)
    # Triangles; every second person has no mask.
    corners = boxes[:, [0, 1, 2, 1, 2, 3]].numpy()
    instances.gt_masks = PolygonMasks([[c] if i % 2 == 0 else [] for i, c in enumerate(corners)])
    instances.gt_has_mask = torch.arange(people) % 2 == 0
    return {
        "image": torch.randint(0, 255, (3, height, width), dtype=torch.uint8),
        "height": height * 2,
        "width": width * 3,
        "image_id": 1,
        "instances": instances,
        "crowd_boxes": torch.tensor([[0.0, 0.0, width / 2, height / 2]])[:crowds],
        "person_mask": torch.zeros(cells, dtype=torch.uint8),
        "ignore_mask": torch.zeros(cells, dtype=torch.uint8),
    }


with torch.random.fork_rng():
    torch.manual_seed(0)
    BATCHES = {
        "people": [image_input(64, 96, 2), image_input(64, 96, 1)],
        "nobody": [image_input(64, 96, 0), image_input(64, 64, 0)],
        "nobody in one": [image_input(64, 96, 3), image_input(96, 64, 0)],
        "nobody labelled": [image_input(64, 96, 2, labelled=False)],
        "crowd alone": [image_input(64, 96, 0, crowds=1)],
        "three sizes": [image_input(33, 47, 1), image_input(64, 100, 2), image_input(71, 65, 1, 1)],
        # One padded size for both, with different padding inside.
        "same group": [image_input(50, 70, 2), image_input(64, 96, 1)],
    }


@pytest.mark.parametrize("batch", BATCHES)
def test_training_losses_and_gradients_are_finite(model, batch):
    model.train()
    with EventStorage():
        losses = model(BATCHES[batch])
    assert all(name.startswith("loss_") for name in losses)
    assert all(name.count("_") >= 2 or name in SHORT_NAMES for name in losses)
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_fields_and_frame_of_results(model, system):
    model = same_in_any_batch(model.eval())
    inputs = BATCHES["three sizes"]
    for x, result in zip(inputs, model(inputs), strict=True):
        found = result["instances"]
        height, width = x["height"], x["width"]
        assert found.image_size == (height, width)
        fields = {"pred_boxes", "scores", "pose_scores", "pred_classes", "pred_keypoints"}
        assert fields <= set(found.get_fields())
        assert len(found) > 0
        assert found.pred_keypoints.shape == (len(found), K, 3)
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert found.pred_boxes.nonempty().all()
        assert ((found.pred_keypoints[..., 2] >= 0) & (found.pred_keypoints[..., 2] <= 1)).all()
        assert ((found.pose_scores >= 0) & (found.pose_scores <= 1)).all()
        assert (found.pred_classes == 0).all()
        assert ("sem_seg" in result) == (system in WITH_SEM_SEG)
        if "sem_seg" in result:
            assert result["sem_seg"].shape == (2, height, width)
            torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(height, width))
        assert found.has("pred_masks") == (system in WITH_MASKS)
        if found.has("pred_masks"):
            assert found.pred_masks.shape == (len(found), height, width)
            assert found.pred_masks.dtype == torch.bool


def test_an_image_scores_the_same_alone_and_in_any_batch(model):
    model = same_in_any_batch(model.eval())
    inputs = BATCHES["three sizes"] + BATCHES["people"] + BATCHES["same group"]
    together = model(inputs)
    for x, result in zip(inputs, together, strict=True):
        alone = model([x])[0]
        assert len(alone["instances"]) == len(result["instances"])
        for name, value in alone["instances"].get_fields().items():
            other = result["instances"].get(name)
            value, other = getattr(value, "tensor", value), getattr(other, "tensor", other)
            pixels = 10.0 if "boxes" in name or "keypoints" in name else 1.0
            if value.dtype == torch.bool:
                # Pixels at the very edge may be rounded either way.
                assert (value != other).float().mean() < 1e-3, name
                continue
            torch.testing.assert_close(value, other, atol=1e-4 * pixels, rtol=1e-4, msg=name)
        if "sem_seg" in result:
            torch.testing.assert_close(alone["sem_seg"], result["sem_seg"], atol=1e-4, rtol=0)
    # The input is left as it was.
    assert inputs[0]["image"].dtype == torch.uint8
    assert [r["instances"].image_size for r in model(inputs)] == [
        r["instances"].image_size for r in together
    ]


def test_save_and_load(model, build, tmp_path):
    PoseCheckpointer(model, str(tmp_path)).save("model", iteration=3)
    torch.load(tmp_path / "model.pth", weights_only=True)
    other = build()
    before = tensors_of(other.eval()(BATCHES["people"])[0])
    PoseCheckpointer(other, strict=True).load(str(tmp_path / "model.pth"))
    a, b = (tensors_of(m.eval()(BATCHES["people"])[0]) for m in (model, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(before[name], b[name]) for name in b)


def tensors_of(result: dict) -> dict[str, torch.Tensor]:
    """Everything that a model says of an image."""
    fields = result["instances"].get_fields()
    found = {name: getattr(value, "tensor", value) for name, value in fields.items()}
    return found | {name: x for name, x in result.items() if name != "instances"}
