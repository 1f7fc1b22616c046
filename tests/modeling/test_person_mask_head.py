"""The mask head learns from people with a mask alone; polygons and RLE are the same to it."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from mpn_d2.data.person_masks import instance_masks
from mpn_d2.modeling.roi_heads import PersonMaskHead

SIZE = (40, 50)
BOX = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


def head() -> PersonMaskHead:
    return PersonMaskHead(
        ShapeSpec(channels=4, height=14, width=14), num_classes=1, conv_dims=[4, 4]
    )


def rle(polygons, size=SIZE) -> dict:
    return mask_util.merge(mask_util.frPyObjects(polygons, *size))


def people_of(annotations, boxes) -> Instances:
    people = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(boxes)))
    people.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    people.gt_masks, people.gt_has_mask = instance_masks(annotations, SIZE, T.NoOpTransform(), SIZE)
    return people


def loss_of(model, x, instances) -> torch.Tensor:
    with EventStorage():
        return model(x, instances)["loss_mask"]


def test_people_without_a_mask_do_not_count():
    model, x = head(), torch.randn(3, 4, 14, 14)
    boxes = [[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 20.0, 20.0], [15.0, 0.0, 45.0, 40.0]]
    annotations = [{"segmentation": BOX}, {}, {"segmentation": [[0, 0, 9, 0]]}]
    people = people_of(annotations, boxes)
    assert people.gt_has_mask.tolist() == [True, False, False]
    # The first box is its mask: every cell of the target is 1.
    logits = model.layers(x[:1])[:, 0]
    expected = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    torch.testing.assert_close(loss_of(model, x, [people[:2], people[2:]]), expected)
    # Nobody with a mask, and an image where nobody is annotated (no field at all).
    nobody = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    nobody.gt_classes = torch.zeros(0, dtype=torch.long)
    loss = loss_of(model, x[1:], [people[1:], nobody])
    assert loss == 0
    loss.backward()
    assert model.predictor.weight.grad is not None


@pytest.mark.parametrize("mirrored", [False, True])
def test_polygons_and_rle_say_the_same(mirrored):
    flip = T.HFlipTransform(SIZE[1]) if mirrored else T.NoOpTransform()
    triangle = [[12.0, 3.0, 41.0, 30.0, 4.0, 36.0], [40.0, 2.0, 48.0, 2.0, 48.0, 9.0]]
    polygons, known = instance_masks([{"segmentation": triangle}], SIZE, flip, SIZE)
    assert isinstance(polygons, PolygonMasks) and known.tolist() == [True]
    mixed = [{"segmentation": rle(triangle)}, {"segmentation": triangle}, {}]
    bitmaps, known = instance_masks(mixed, SIZE, flip, SIZE)
    assert isinstance(bitmaps, BitMasks) and known.tolist() == [True, True, False]
    expected = mask_util.decode(rle(triangle)).astype(bool)
    expected = expected[:, ::-1] if mirrored else expected
    assert np.array_equal(bitmaps.tensor[0].numpy(), expected)
    # A polygon that is mirrored before it is drawn may differ at its edge.
    assert (bitmaps.tensor[1].numpy() != expected).mean() < 0.02
    assert not bitmaps.tensor[2].any()
    box = torch.tensor([[2.0, 1.0, 48.0, 38.0]])
    drawn = [m.crop_and_resize(box, 28)[0] for m in (polygons, bitmaps[:1])]
    assert (drawn[0] != drawn[1]).float().mean() < 0.05
    assert drawn[0].float().mean() > 0.2


def test_nobody():
    masks, known = instance_masks([], SIZE, T.NoOpTransform(), SIZE)
    assert len(masks) == 0 and len(known) == 0
    with pytest.raises(ValueError, match="RLE mask of size"):
        instance_masks([{"segmentation": rle(BOX, (9, 9))}], SIZE, T.NoOpTransform(), SIZE)
