"""LiMeng95's checkpoints: every key has its place, and the layers give the same maps there."""

from __future__ import annotations

import foreign_networks
import h5py
import pytest
import torch
from detectron2.modeling import build_model
from foreign_networks import COCO_INDEX, Network

from mpn_d2.convert import convert
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.utils.safe_files import read_foreign_weights

CONFIG = "MultiPoseNet/compat/multiposenet_pytorch_R50.yaml"
NARROW = {"base": 8, "channels": 16, "d_dim": 8, "classes": 80, "nodes": 4}
OPTIONS = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"]
OPTIONS += ["MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "16"]
OPTIONS += ["MODEL.KP_SUBNET.D_DIM", "8", "MODEL.KP_SUBNET.SMOOTH_DIM", "16"]
OPTIONS += ["MODEL.PRN.NODES", "4"]


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(3)
    return foreign_networks.random_weights(foreign_networks.shapes(**NARROW))


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    """As published: HDF5, a data set a name, all with the prefix; then converted and saved."""
    folder = tmp_path_factory.mktemp("limeng")
    with h5py.File(folder / "ckpt.h5", "w") as file:
        file.attrs["epoch"] = 20
        for name, value in weights.items():
            file.create_dataset(f"module.{name}", data=value.numpy())
    done = convert("multiposenet_pytorch", read_foreign_weights(folder / "ckpt.h5"))
    path = folder / "converted.pth"
    torch.save({"model": done.weights, "settings": done.settings}, path)
    return str(path)


@pytest.fixture()
def model(checkpoint, paper_config):
    cfg = paper_config(CONFIG, OPTIONS)
    model = build_model(cfg)
    PoseCheckpointer(model, cfg=cfg, strict=True).load(checkpoint)
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_keypoint_maps_are_the_same(weights, model, image):
    final, intermediate = Network(weights).heatmaps(Network(weights).trunk(image.float()))
    pixels = model.preprocess_image([{"image": image[0]}]).tensor
    pyramid = model.backbone(pixels)
    ours = model.keypoint_head.layers(pyramid)
    without_neck = [0, *range(2, 18)]
    assert ours.maps.shape == (1, 18, 16, 24) and final.std() > 0.1
    torch.testing.assert_close(
        ours.maps[:, list(COCO_INDEX)], final[:, without_neck], rtol=1e-4, atol=1e-4
    )
    assert (ours.maps[:, 17] == 0).all() and not ours.intermediate
    model.keypoint_head.train()
    for name, maps in model.keypoint_head.layers(pyramid).intermediate.items():
        expected = intermediate[name][:, without_neck]
        torch.testing.assert_close(maps[:, list(COCO_INDEX)], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_boxes_are_the_same(weights, model, image):
    theirs = Network(weights).boxes(Network(weights).trunk(image.float()))
    pyramid = model.backbone(model.preprocess_image([{"image": image[0]}]).tensor)
    levels = [pyramid[name] for name in model.head_in_features]
    logits, deltas = model._transpose_dense_predictions(model.head(levels), [1, 4])
    anchors = model.anchor_generator(levels)
    for ours, logit, delta, (places, boxes, chances) in zip(
        anchors, logits, deltas, theirs, strict=True
    ):
        distance = torch.cdist(ours.tensor, places, p=1.0)
        nearest = distance.argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(len(places)))
        assert distance.amin(dim=1).max() < 1e-2
        found = model.box2box_transform.apply_deltas(delta[0], ours.tensor)
        torch.testing.assert_close(found, boxes[nearest], rtol=1e-3, atol=2e-2)
        torch.testing.assert_close(logit[0, :, 0].sigmoid(), chances[nearest], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_prn_is_the_same(weights, model):
    grids = torch.rand(2, 17, 56, 36) * 3
    ours = model.assembler.evidence.network(grids)
    theirs = Network(weights).prn(grids)
    assert theirs.log().std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-9)


def test_people_come_out(model, image):
    model.assembler.box_score_thresh = 0.0
    [result] = model([{"image": image[0]}])
    people = result["instances"]
    assert len(people) and people.pred_keypoints.shape[1:] == (17, 3)
    assert (result["sem_seg"][0] == 1).all()


@pytest.mark.parametrize(("depth", "blocks", "count"), [(50, 6, 402), (101, 23, 708)])
def test_full_size_checkpoints_fill_the_configs(depth, blocks, count, paper_config):
    found = foreign_networks.shapes((3, 4, blocks, 3))
    assert len(found) == count
    state = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
    done = convert("multiposenet_pytorch", state)
    cfg = paper_config(f"MultiPoseNet/compat/multiposenet_pytorch_R{depth}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        ours = build_model(cfg).state_dict()
    assert {n: x.shape for n, x in done.weights.items()} == {n: x.shape for n, x in ours.items()}
    # The published number of the R50 network.
    if depth == 50:
        counted = [x for n, x in ours.items() if "running_" not in n and x.ndim]
        assert sum(x.numel() for x in counted) == 113_332_651


def test_names_that_lack_and_names_too_many_are_listed(weights):
    broken = {n: x for n, x in weights.items() if n not in ("convt3.bias", "prn.bneck.weight")}
    broken["fpn.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        convert("multiposenet_pytorch", broken)
    message = str(error.value)
    assert "2 missing: convt3.bias, prn.bneck.weight" in message
    assert "1 unknown: fpn.extra.weight" in message
    with pytest.raises(ValueError, match=r"layers of \[3, 4, 5, 3\] bottlenecks"):
        kept = {n: x for n, x in weights.items() if not n.startswith("fpn.layer3.5")}
        convert("multiposenet_pytorch", kept)


def test_files_of_old_pytorch_have_no_counters(weights):
    old = {n: x for n, x in weights.items() if not n.endswith("num_batches_tracked")}
    done = convert("multiposenet_pytorch", old)
    assert done.weights["backbone.bottom_up.stem.conv1.norm.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_STD", "[57.375, 57.12, 58.395]"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "True"),
        ("MODEL.KP_SUBNET.D_RELU", "True"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", "0.0"),
        ("MODEL.PRN.SOFTMAX", "channel"),
    ],
)
def test_other_settings_are_refused(key, value, checkpoint, paper_config):
    cfg = paper_config(CONFIG, [*OPTIONS, key, value])
    with pytest.raises(ValueError, match=f"other settings than this config's \\({key} is "):
        PoseCheckpointer(build_model(cfg), cfg=cfg).load(checkpoint)


def test_heads_of_other_skeletons_and_shared_pyramids_are_refused(paper_config):
    with pytest.raises(ValueError, match="no channel for head: set MODEL.SKELETON coco"):
        build_model(paper_config(CONFIG, [*OPTIONS, "MODEL.SKELETON", "crowdpose"]))
    with pytest.raises(ValueError, match="KEYPOINT_TOP_CONV False is for"):
        build_model(paper_config(CONFIG, [*OPTIONS, "MODEL.POSE_FPN.SHARED", "True"]))


def test_the_missing_person_mask_trains_nothing(model):
    head = model.keypoint_head.train()
    pyramid = {n: torch.rand(1, 16, 16 >> i, 16 >> i) for i, n in enumerate(head.in_features)}
    keypoints = torch.tensor([[[30.0, 30.0, 2.0]] * 17])
    mask = torch.ones(16, 16, dtype=torch.uint8)
    targets = head.make_targets([keypoints], [mask], [torch.zeros_like(mask)], (16, 16))
    assert (targets.loss_mask[:, 17] == 0).all() and (targets.loss_mask[:, :17] > 0).any()
    losses = head.losses(head.layers(pyramid), targets)
    sum(losses.values()).backward()
    gradient = head.predictor.weight.grad.flatten(1).abs().sum(dim=1)
    assert gradient[1] == 0 and (gradient[[0, *range(2, 18)]] > 0).all()
