"""The single-person network: its parts, targets, losses; its joints come back to the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances, Keypoints
from detectron2.utils.events import EventStorage

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.data.person_crops import crop_matrix
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.modeling.backbone import PosePyramids
from mpn_d2.structures.outputs import HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton

CONFIG, WHOLE = "quick/single_person_drawn.yaml", "quick/R_18_drawn.yaml"
K = 17
SIZE = (71, 53)
IMAGE = (150, 203)


@pytest.fixture()
def model(paper_config):
    return build_model(paper_config(CONFIG, ["SINGLE_PERSON.TEST_BATCH", "3"]))


def training_input(people: int = 1, labelled: int = K, size: tuple[int, int] = SIZE) -> dict:
    joints = torch.rand(people, K, 3) * torch.tensor([size[1], size[0], 0.0])
    joints[:, :labelled, 2] = 2.0
    instances = Instances(size)
    instances.gt_keypoints = Keypoints(joints)
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    return {"image": image, "instances": instances, "image_id": 1, "owner": 0}


def crop_input(box: list[float], size: tuple[int, int] = SIZE) -> dict:
    return {
        "image": torch.randint(0, 255, (3, *size), dtype=torch.uint8),
        "box": torch.tensor(box),
        "to_crop": torch.from_numpy(crop_matrix(np.array(box), size, 0.125)),
        "height": IMAGE[0],
        "width": IMAGE[1],
    }


BOXES = [[20.0, 30, 90, 140], [0.0, 0, 31.3, 47.9], [150.2, 99.1, 203, 150], [10, 10, 190, 20]]


def test_it_is_the_keypoint_part_of_a_whole_network(model, paper_config, tmp_path):
    whole = build_model(paper_config(WHOLE, ["MODEL.PRN.NODES", "4"]))
    state, whole_state = model.state_dict(), whole.state_dict()
    keypoint = {
        id(p)
        for module in whole.part_modules()["keypoint"]
        for p in module.state_dict(keep_vars=True).values()
    }
    names = {n for n, p in whole.state_dict(keep_vars=True).items() if id(p) in keypoint}
    assert set(state) == names
    # Only what predicts maps has one channel less.
    other = {n for n in state if state[n].shape != whole_state[n].shape}
    maps = ("keypoint_head.predictor.", "keypoint_head.intermediate.")
    assert other == {n for n in state if n.startswith(maps)} and len(other) == 10
    assert all(state[n].shape[0] == K == whole_state[n].shape[0] - 1 for n in other)
    # The one's checkpoint is a start for the other.
    PoseCheckpointer(whole, str(tmp_path)).save("whole")
    checkpointer = PoseCheckpointer(model)
    checkpointer.load(str(tmp_path / "whole.pth"))
    assert checkpointer.not_loaded == other
    name = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(model.state_dict()[name], whole_state[name])
    modules = model.part_modules()["keypoint"]
    assert sum(len(list(m.parameters())) for m in modules) == len(list(model.parameters()))


def test_pyramids_without_the_persons(model):
    assert isinstance(model.backbone, PosePyramids)
    assert list(model.backbone.output_shape()) == ["k2", "k3", "k4", "k5"]
    assert list(model.backbone(torch.zeros(1, 3, 64, 64))) == ["k2", "k3", "k4", "k5"]
    assert model.backbone.person_modules() == []
    arguments = {"keypoint_in_features": ["res2", "res5"], "person_in_features": []}
    with pytest.raises(ValueError, match="shared pyramid"):
        PosePyramids(bottom_up=model.backbone.bottom_up, shared=True, **arguments)


def test_losses_compare_with_her_joints_alone(model, monkeypatch):
    """Masked L2 with a weight of 1 everywhere (times the peaks'), at every level and the end."""
    inputs = [training_input(labelled=5), training_input(people=0)]
    model.train()
    seen = {}
    layers = model.keypoint_head.layers
    monkeypatch.setattr(
        model.keypoint_head, "layers", lambda x: seen.setdefault("outputs", layers(x))
    )
    with EventStorage():
        losses = model(inputs)
    assert set(losses) == {f"loss_keypoint_{n}" for n in ("final", "k2", "k3", "k4", "k5")}
    outputs, size = seen["outputs"], (24, 16)
    assert outputs.maps.shape == (2, K, *size)
    joints = [x["instances"].gt_keypoints.tensor for x in inputs]
    wanted = encode_heatmaps(joints, K, size, 4, 5.0)
    assert not wanted[1].any() and not wanted[0, 5:].any()
    assert (wanted[0, :5].flatten(1).max(dim=1).values > 0.7).all()
    squares = (1 + 4.0 * wanted) * (outputs.maps.float() - wanted) ** 2
    torch.testing.assert_close(losses["loss_keypoint_final"], squares.mean())
    coarse = outputs.intermediate["k5"].float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    squares = (1 + 4.0 * wanted) * (coarse - wanted) ** 2
    torch.testing.assert_close(losses["loss_keypoint_k5"], squares.mean())


@pytest.mark.parametrize(
    "batch",
    [
        [training_input(), training_input()],
        [training_input(people=0), training_input(labelled=0)],
        [training_input(size=(64, 48))],
    ],
    ids=["people", "nobody", "one"],
)
def test_losses_and_gradients_are_finite(model, batch):
    model.train()
    with EventStorage():
        losses = model(batch)
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in model.parameters()) > 40
    # Nothing at all.
    empty = model([])
    assert all(v.requires_grad and v.item() == 0 for v in empty.values()) and empty
    assert model.eval()([]) == []


def test_joints_come_back_to_the_image(model, monkeypatch):
    """A network that draws clean maps: its points are where they were, boxes at borders too."""
    inputs = [crop_input(box) for box in BOXES]
    truth, maps = [], []
    for x in inputs:
        low, high = x["box"][:2], x["box"][2:]
        points = low + torch.rand(K, 2) * (high - low)
        points[:2] = torch.stack([low, high])
        truth.append(points)
        matrix = x["to_crop"].float()
        crop = points @ matrix[:, :2].T + matrix[:, 2]
        joints = torch.cat([crop, torch.full((K, 1), 2.0)], dim=1)[None]
        maps.append(encode_heatmaps([joints], K, (24, 16), 4, 5.0))
    drawn = iter([torch.cat(maps[:3]), maps[3]])
    monkeypatch.setattr(model.keypoint_head, "layers", lambda _: HeatmapOutputs(next(drawn), 4))
    results = model.eval()(inputs)
    assert next(drawn, None) is None, "chunks of three"
    for x, points, result in zip(inputs, truth, results, strict=True):
        found = result["instances"]
        assert found.image_size == IMAGE and len(found) == 1
        scale = float(x["to_crop"][0, 0])
        error = (found.pred_keypoints[0, :, :2] - points).norm(dim=1).max()
        assert error * scale < 0.05, "pixels of the crop"
        scores = found.pred_keypoints[0, :, 2]
        assert (scores > 0.95).all() and (scores <= 1).all()
        torch.testing.assert_close(found.pose_scores, scores.mean()[None])
        assert torch.equal(found.pred_boxes.tensor[0], x["box"])
        assert found.scores.tolist() == [1] and found.pred_classes.tolist() == [0]


def test_joints_stay_in_the_image(model, monkeypatch):
    joints = torch.tensor([[[-3.0, 5, 2], [60, 5, 2], [10, 80, 2]]])
    maps = torch.zeros(1, K, 24, 16)
    maps[:, :3] = encode_heatmaps([joints], 3, (24, 16), 4, 5.0)
    monkeypatch.setattr(model.keypoint_head, "layers", lambda _: HeatmapOutputs(maps, 4))
    found = model.eval()([crop_input([0.0, 0, IMAGE[1], IMAGE[0]])])[0]["instances"]
    points = found.pred_keypoints[0]
    assert (points[:, :2] >= 0).all() and (points[:, :2] <= torch.tensor(IMAGE[::-1])).all()
    assert ((points[:, 2] > 0) & (points[:, 2] <= 1)).all()


def test_a_crop_gives_the_same_alone_and_in_any_batch(model):
    inputs = [crop_input(box) for box in [*BOXES, *BOXES[:3]]]
    before = [x["image"].clone() for x in inputs]
    together = model.eval()(inputs)
    for x, image, result in zip(inputs, before, together, strict=True):
        alone = model([x])[0]["instances"]
        torch.testing.assert_close(
            alone.pred_keypoints, result["instances"].pred_keypoints, atol=1e-3, rtol=1e-4
        )
        assert torch.equal(x["image"], image)


@pytest.mark.parametrize("width", [48, 64], ids=["padded", "whole"])
def test_both_sights_of_a_crop_make_one_without_a_side(model, width):
    # The same everywhere is no test: sharper maps.
    with torch.no_grad():
        model.keypoint_head.predictor.weight *= 30
    model.eval()
    crop = crop_input([0.0, 0.0, width, 64.0], (64, width))
    crop |= {"to_crop": torch.eye(2, 3, dtype=torch.float64), "height": 64, "width": width}
    mirrored = {**crop, "image": crop["image"].flip(-1)}
    flip = list(get_skeleton("coco").flip_indices)

    def gap() -> float:
        one, other = (x["instances"].pred_keypoints[0] for x in model([crop, mirrored]))
        other = other[flip]
        other[:, 0] = width - other[:, 0]
        return float((one - other).abs().max())

    assert gap() > 1
    model.flip_indices = tuple(flip)
    assert gap() < 1e-3
    narrow = {**crop, "image": crop["image"][..., :46]}
    with pytest.raises(ValueError, match=r"SINGLE_PERSON\.SIZE is 46 pixels wide"):
        model([narrow])


def test_mistakes_are_named(model, paper_config):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"no 'to_crop'.*REFINE\.CONFIG"):
        model.eval()([{"image": image}])
    with pytest.raises(ValueError, match="no 'instances'"):
        model.train()([{"image": image}])
    for key, value in (
        ("EVAL.BOX_SOURCE", "pred"),
        ("EVAL.KEYPOINT_SOURCE", "gt"),
        ("EVAL.TASKS", "['keypoints', 'bbox']"),
        ("SINGLE_PERSON.ENABLED", "False"),
        ("SINGLE_PERSON.TEST_BATCH", "0"),
        ("MODEL.TRAIN_PARTS", "['keypoint', 'person']"),
    ):
        with pytest.raises(ValueError, match=key):
            build_model(paper_config(CONFIG, [key, value]))


def test_two_people_are_learned_by_heart(paper_config):
    """Both stand in both crops: which of them is meant, the crop alone tells."""
    # Small, and deep enough to see all of the crop.
    options = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
    options += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]
    options += ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.KP_SUBNET.SMOOTH_DIM", "32"]
    model = build_model(paper_config(CONFIG, options)).train()
    scene = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    inputs = [training_input(size=(64, 64)), training_input(size=(64, 64))]
    inputs[0]["image"], inputs[1]["image"] = scene[:, :, :64], scene[:, :, 32:]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(60):
        optimizer.zero_grad()
        with EventStorage():
            sum(model(inputs).values()).backward()
        optimizer.step()
    model.eval()
    for x in inputs:
        whole = {"to_crop": torch.eye(2, 3), "box": torch.tensor([0.0, 0, 64, 64])}
        found = model([{**x, **whole, "height": 64, "width": 64}])[0]["instances"]
        error = found.pred_keypoints[0, :, :2] - x["instances"].gt_keypoints.tensor[0, :, :2]
        error = error.norm(dim=1)
        assert error.median() < 1 and error.max() < 5
