"""TEST.REFINE and TEST.MULTISCALE of both networks with tags: which joints are filled in, where.

The base is a stand-in that shows the image's own channels, so that a test paints its heatmaps and
tags.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from test_recurrent_association import TINY, Script
from test_tags import an_image
from torch import nn

from mpn_d2.modeling.heads.bottom_up_features import TagReader
from mpn_d2.modeling.heads.feature_input import FeatureInput
from mpn_d2.modeling.heads.tag_head import AssociativeEmbeddingHead
from mpn_d2.modeling.meta_arch.associative_embedding import AssociativeEmbedding
from mpn_d2.modeling.meta_arch.sequence_training import SequenceRules
from mpn_d2.modeling.meta_arch.unified_association import RecurrentAssociation

K = 3
STRIDE = 4
SHAPES = {"hg1": ShapeSpec(channels=2 * K, stride=STRIDE)}
NAMES = ("nose", "left_eye", "right_eye")
# A decoder's cell is four of the base.
SHRINK = 2


class Colours(nn.Module):
    """Shows means over 4 x 4 pixels: K channels as heatmaps, then K as tags.

    Zeros, which images are padded with, show as 1. `gains`: of the heatmaps in views of that width.
    """

    size_divisibility = STRIDE * SHRINK

    def __init__(self, gains: dict[int, float] | None = None):
        super().__init__()
        self.gains, self.views = gains or {}, []

    def forward(self, images):
        self.views.append(tuple(images.shape[-2:]))
        maps = F.avg_pool2d(images, STRIDE) + 1
        gain = self.gains.get(images.shape[-1], 1.0)
        return {"hg1": torch.cat([gain * maps[:, :K], maps[:, K:]], dim=1)}


def parts(base: Colours) -> dict:
    head = AssociativeEmbeddingHead(input_shape=SHAPES, keypoint_names=NAMES, peak_thresh=0.4)
    return {
        "backbone": base,
        "keypoint_head": head,
        "flip_indices": (0, 2, 1),
        # What the images say is then what the base shows.
        "pixel_mean": [1.0] * (2 * K),
        "pixel_std": [1.0] * (2 * K),
    }


def recurrent(base: Colours, written: torch.Tensor, **options) -> RecurrentAssociation:
    """A network whose decoder writes these maps (P, K, h, w) of each image, then nobody."""
    of_base = parts(base)
    steps = torch.cat([written, written[:1] * 0])
    net = RecurrentAssociation(
        **of_base,
        reader=TagReader(of_base["keypoint_head"], SHAPES, "supervised"),
        features=FeatureInput(2 * K, shrink=SHRINK, norm=False),
        decoder=Script([[0.9] * len(written) + [0.1]], [steps]),
        rules=SequenceRules(),
        train_parts=["sequence"],
        **options,
    )
    return net.eval()


def canvas(height: int, width: int, tag: float) -> torch.Tensor:
    """An image without joints, the tag everywhere."""
    image = torch.zeros(2 * K, height, width)
    image[K:] = tag
    return image


def paint(image: torch.Tensor, joint: int, row: int, column: int, value: float) -> None:
    """One cell of the base."""
    cells = (slice(STRIDE * i, STRIDE * (i + 1)) for i in (row, column))
    image[(joint, *cells)] = value


def blob(image: torch.Tensor, joint: int, x: float, y: float, value: float) -> None:
    """A Gaussian wide enough to be seen in half of the size."""
    rows, columns = (torch.arange(side) + 0.5 for side in image.shape[1:])
    squares = (columns - x) ** 2 + (rows[:, None] - y) ** 2
    image[joint] += value * torch.exp(-squares / (2 * 12.0**2))


@pytest.mark.parametrize("refine", [False, True])
def test_missing_joints_are_found_in_the_maps_of_the_base_by_tag(refine):
    image = canvas(64, 96, 2.0)
    image[K:, :, 48:] = 5.0
    paint(image, 1, 3, 5, 0.6)
    # Higher, but of the other person, who has that joint.
    paint(image, 1, 12, 20, 0.9)
    paint(image, 2, 11, 18, 0.5)
    written = torch.zeros(2, K, 8, 12)
    written[0, 0, 1, 2] = 0.8
    written[1, 0, 5, 9], written[1, 1, 6, 9] = 0.6, 0.5
    net = recurrent(Colours(), written, refine=refine)
    people = net([{"image": image}])[0]["instances"]
    wanted = torch.zeros(2, K, 3)
    # A quarter of a cell from its corner: written on cells of 8, filled in on those of 4.
    wanted[0, 0] = torch.tensor([18.0, 10.0, 0.8])
    wanted[1, 0], wanted[1, 1] = torch.tensor([74.0, 42.0, 0.6]), torch.tensor([74.0, 50.0, 0.5])
    if refine:
        # Type 2 is nowhere in the first person's half.
        wanted[0, 1] = torch.tensor([21.0, 13.0, 0.6])
        wanted[1, 2] = torch.tensor([73.0, 45.0, 0.5])
    torch.testing.assert_close(people.pred_keypoints, wanted)
    # Scores are those of what was written.
    torch.testing.assert_close(people.pose_scores, torch.tensor([0.8, 0.55]))
    found = wanted[0, wanted[0, :, 2] > 0, :2]
    box = torch.cat([found.amin(dim=0) - 8, found.amax(dim=0) + 8])
    torch.testing.assert_close(people.pred_boxes.tensor[0], box)


def test_nothing_is_found_in_the_padding_and_points_stay_in_the_image():
    """Padding has the person's tag and shows the highest value of all."""
    image = canvas(50, 68, 1.0)
    paint(image, 1, 3, 5, 0.6)
    # Half of these cells is padding: 0.5 where the image shows 0, 0.7 here.
    paint(image, 2, 12, 8, 0.4)
    written = torch.zeros(1, K, 7, 9)
    written[0, 0, 1, 2] = 0.8
    net = recurrent(Colours(), written, refine=True)
    people = net([{"image": image, "height": 100, "width": 136}])[0]["instances"]
    wanted = torch.tensor([[[18.0, 10.0, 0.8], [21.0, 13.0, 0.6], [33.0, 50.0, 0.7]]])
    # In pixels of the file, twice as large.
    torch.testing.assert_close(people.pred_keypoints, wanted * torch.tensor([2.0, 2.0, 1.0]))


def test_each_image_of_a_batch_is_filled_from_its_own_maps():
    places, images = [(3, 5), (8, 2)], []
    for place in places:
        image = canvas(64, 96, 1.0)
        paint(image, 1, *place, 0.6)
        images.append({"image": image})
    written = torch.zeros(1, K, 8, 12)
    written[0, 0, 1, 2] = 0.8
    net = recurrent(Colours(), written, refine=True)
    # The same for both images.
    net.decoder.scores, net.decoder.given = net.decoder.scores * 2, net.decoder.given * 2
    for (row, column), result in zip(places, net(images), strict=True):
        found = result["instances"].pred_keypoints[0, 1]
        wanted = [STRIDE * (column + 0.25), STRIDE * (row + 0.25), 0.6]
        torch.testing.assert_close(found, torch.tensor(wanted))


@pytest.mark.parametrize("kind", ["recurrent", "tags"])
@pytest.mark.parametrize("views", ["no filling", "one view", "several views"])
def test_joints_are_filled_in_from_the_views_that_are_asked_for(kind, views):
    """Left and right eye are somewhere else each; the mirrored views mix them up."""
    nose, left, right = (26.0, 22.0), (70.0, 18.0), (42.0, 46.0)
    image = canvas(64, 96, 1.0)
    for joint, (place, value) in enumerate(zip((nose, left, right), (0.5, 0.3, 0.36))):
        blob(image, joint, *place, value)
    base = Colours({48: 0.3, 96: 1.0, 192: 3.0})
    options = {"refine": views != "no filling", "multiscale": views == "several views"}
    if kind == "tags":
        net = AssociativeEmbedding(**parts(base), train_parts=["tags"], **options).eval()
    else:
        written = torch.zeros(1, K, 8, 12)
        written[0, 0, 2, 3] = 0.5
        net = recurrent(base, written, **options)
    (person,) = net([{"image": image}])[0]["instances"].pred_keypoints
    assert (person[0, :2] - torch.tensor(nose)).abs().max() <= 4  # half a cell of the decoder
    if views == "no filling":
        assert base.views == [(64, 96)] and (person[1:] == 0).all()
    elif views == "one view":
        assert base.views == [(64, 96)]
        assert (person[1:, :2] - torch.tensor([left, right])).abs().max() <= 2
        torch.testing.assert_close(person[1:, 2], torch.tensor([0.3, 0.36]), rtol=0.02, atol=0)
    else:
        sizes = [size for size in ((32, 48), (64, 96), (128, 192)) for _ in range(2)]
        assert sorted(base.views) == sizes
        # Half of the views have the other eye there, which is higher.
        assert (person[1:, :2] - torch.tensor(right)).abs().max() <= 2
        mean = 0.36 / 2 * (0.3 + 1.0 + 3.0) / 3
        torch.testing.assert_close(person[1:, 2], torch.tensor([mean] * 2), rtol=0.04, atol=0)
    if kind == "tags":
        # Grouping sees the same maps as filling.
        height = 0.5 * (4.3 / 3 if views == "several views" else 1.0)
        assert person[0, 2].item() == pytest.approx(height, rel=0.04)


def test_several_views_group_without_filling():
    image = canvas(64, 96, 1.0)
    blob(image, 0, 26.0, 22.0, 0.5)
    base = Colours({48: 0.3, 192: 3.0})
    net = AssociativeEmbedding(**parts(base), train_parts=["tags"], multiscale=True).eval()
    (person,) = net([{"image": image}])[0]["instances"].pred_keypoints
    assert person[0, 2].item() == pytest.approx(0.5 * 4.3 / 3, rel=0.04)
    assert (person[1:] == 0).all()


@pytest.mark.parametrize("config", ["unified.yaml", "AE_multiscale.yaml"])
def test_keys_of_a_config_reach_the_views_and_the_filling(paper_config, config):
    options = TINY if config == "unified.yaml" else [*TINY[:6], "MODEL.TRAIN_PARTS", "['tags']"]
    x = {"image": an_image(128, 128)["image"]}
    for several in (True, False):
        keys = ["TEST.REFINE", str(several), "TEST.MULTISCALE", str(several)]
        cfg = paper_config(f"UnifiedAssociation/{config}", [*options, *keys])
        net, widths = build_model(cfg).eval(), []
        net.backbone.register_forward_pre_hook(
            lambda module, args, widths=widths: widths.append(args[0].shape[-1])
        )
        net([x])
        assert net.refine == several
        assert set(widths) == ({64, 128, 256} if several else {128})
