"""Associative embedding: losses against loops, the hourglass, the whole network."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints

from mpn_d2.modeling.backbone import StackedHourglass
from mpn_d2.modeling.heads import AssociativeEmbeddingHead
from mpn_d2.modeling.tag_losses import pull_and_push, tagged_joints
from mpn_d2.structures.outputs import TagOutputs

TINY = ["MODEL.HOURGLASS.WIDTH", "8", "MODEL.HOURGLASS.GROWTH", "4", "MODEL.HOURGLASS.STACKS", "2"]
TINY += ["MODEL.TRAIN_PARTS", "['tags']"]
K = 17


def slow_pull_and_push(tags, keypoints, stride):
    """Sums written out; images without people count as 0."""
    pulls = pushes = 0.0
    for image, people in enumerate(keypoints):
        lists = []
        for person in people.tolist():
            values = []
            for k, (x, y, v) in enumerate(person):
                row, column = int(y // stride), int(x // stride)
                inside = 0 <= row < tags.shape[2] and 0 <= column < tags.shape[3]
                if v > 0 and inside:
                    values.append(tags[image, k, row, column].item())
            if values:
                lists.append(values)
        means = [sum(v) / len(v) for v in lists]
        if lists:
            each = [sum((t - m) ** 2 for t in v) / len(v) for v, m in zip(lists, means)]
            pulls += sum(each) / len(each)
        count = len(means)
        if count > 1:
            close = sum(
                math.exp(-((means[i] - means[j]) ** 2))
                for i in range(count)
                for j in range(count)
                if i != j
            )
            pushes += close / (count * (count - 1)) / 2
    return pulls / len(keypoints), pushes / len(keypoints)


def test_pull_and_push_equal_sums_written_out():
    tags = torch.randn(4, 3, 5, 6, requires_grad=True)
    keypoints = [
        torch.rand(people, 3, 3) * torch.tensor([26.0, 22.0, 1.0]) for people in (3, 0, 1, 2)
    ]
    for points in keypoints:
        points[..., 2] = (points[..., 2] > 0.3).float() * 2
    keypoints[3][1, :, 2] = 0  # nobody can see her
    found = pull_and_push(tags, tagged_joints(keypoints, 4, (5, 6)))
    wanted = slow_pull_and_push(tags.detach(), keypoints, 4)
    torch.testing.assert_close(torch.stack(found), torch.tensor(wanted))
    sum(found).backward()
    assert torch.isfinite(tags.grad).all() and tags.grad[0].abs().sum() > 0
    assert tags.grad[1].abs().sum() == 0
    nobody = pull_and_push(tags, tagged_joints([k[:0] for k in keypoints], 4, (5, 6)))
    assert torch.stack(nobody).tolist() == [0.0, 0.0]


def test_hourglass_has_the_channels_and_sizes_of_the_reference():
    net = StackedHourglass(
        in_channels=3, out_channels=68, stacks=3, width=8, growth=4, order=2
    ).eval()
    assert net.size_divisibility == 16
    found = net(torch.randn(2, 3, 48, 32))
    assert list(found) == list(net.output_shape()) == ["hg1", "hg2", "hg3"]
    assert all(x.shape == (2, 68, 12, 8) for x in found.values())
    # A later stack sees what an earlier one said.
    net.heads[0].bias.data += 1.0
    other = net(torch.randn(2, 3, 48, 32))
    assert not torch.allclose(other["hg2"], found["hg2"])
    with pytest.raises(ValueError, match="MODEL.HOURGLASS"):
        StackedHourglass(in_channels=3, out_channels=68, stacks=0)


def test_parameters_of_the_reference_network():
    with torch.device("meta"):
        net = StackedHourglass(in_channels=3, out_channels=68)

    def conv(before, after, kernel=3):
        return before * after * kernel**2 + after

    def hourglass(order, width):
        inner = width + 128
        below = hourglass(order - 1, inner) if order > 1 else conv(inner, inner)
        return conv(width, width) + conv(width, inner) + below + conv(inner, width)

    wanted = conv(3, 64, 7) + conv(64, 128) + conv(128, 128) + conv(128, 256)
    wanted += 4 * (hourglass(4, 256) + 2 * conv(256, 256) + conv(256, 68, 1))
    wanted += 3 * (conv(256, 256, 1) + conv(68, 256, 1))
    assert sum(p.numel() for p in net.parameters()) == wanted


def head(**options):
    shapes = {f"hg{i}": ShapeSpec(channels=4 * K, stride=4) for i in (1, 2)}
    names = tuple(f"joint_{i}" for i in range(K))
    return AssociativeEmbeddingHead(input_shape=shapes, keypoint_names=names, **options)


def test_heatmap_loss_leaves_out_what_is_ignored_and_is_a_mean_over_stacks():
    maps = torch.rand(1, 2, K, 8, 8, requires_grad=True)
    outputs = TagOutputs(maps, torch.zeros(1, 2, K, 8, 8), 4)
    ignore = torch.zeros(6, 8, dtype=torch.uint8)
    ignore[2, 3], ignore[4, 4] = 1, 2
    losses = head(detection_weight=2.0).losses(outputs, [torch.zeros(0, K, 3)], [ignore])
    keep = torch.ones(8, 8)
    keep[2, 3] = 0
    wanted = 2.0 * (maps.square() * keep).mean()
    torch.testing.assert_close(losses["loss_tags_heatmap"], wanted)
    losses["loss_tags_heatmap"].backward()
    assert maps.grad[..., 2, 3].abs().sum() == 0 and maps.grad[..., 4, 4].abs().sum() > 0


def an_image(height=64, width=64, people=2):
    instances = Instances((height, width))
    keypoints = torch.rand(people, K, 3) * torch.tensor([width, height, 0.0]) + torch.tensor(
        [0, 0, 2.0]
    )
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, width, height]] * people))
    instances.gt_classes = torch.zeros(people, dtype=torch.long)
    instances.gt_keypoints = Keypoints(keypoints)
    cells = (-(-height // 4), -(-width // 4))
    return {
        "image": torch.randint(0, 255, (3, height, width), dtype=torch.uint8),
        "instances": instances,
        "crowd_boxes": torch.zeros(0, 4),
        "person_mask": torch.zeros(cells, dtype=torch.uint8),
        "ignore_mask": torch.zeros(cells, dtype=torch.uint8),
    }


def test_it_learns_two_people(paper_config):
    """Overfits one image: heatmaps peak where the joints are and tags tell the people apart."""
    options = [*TINY, "MODEL.HOURGLASS.STACKS", "1", "MODEL.HOURGLASS.ORDER", "2"]
    options += ["MODEL.HOURGLASS.WIDTH", "16", "MODEL.TAGS.PULL_WEIGHT", "0.1"]
    options += ["MODEL.TAGS.PUSH_WEIGHT", "2.0", "MODEL.LOSS.KEYPOINT_WEIGHT", "50.0"]
    # It never saw the mirror image.
    options += ["TEST.FLIP", "False"]
    model = build_model(paper_config("UnifiedAssociation/AE.yaml", options))
    x = an_image()
    truth = x["instances"].gt_keypoints.tensor
    truth[:, :, 0], truth[0, :, 1], truth[1, :, 1] = torch.linspace(4, 60, K), 18.0, 46.0
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(110):
        losses = model.train()([x])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    # exp(-d^2) of the two means: 2.0 * 0.5 where they are equal.
    assert losses["loss_tags_push"] < 0.02
    found = model.eval()([x])[0]["instances"].pred_keypoints[:2]
    found = found[found[:, 0, 1].argsort()]
    gaps = (found[..., :2] - truth[..., :2]).abs()
    # Each has her own joints, about in their places.
    assert gaps[..., 1].amax() < 12 and gaps.mean() < 4


def test_multiscale_and_refinement_run_on_odd_sizes(paper_config):
    cfg = paper_config(
        "UnifiedAssociation/AE_multiscale.yaml", [*TINY, "MODEL.PEAKS.THRESH", "0.0"]
    )
    net = build_model(cfg).eval()
    assert net.scales == (1.0, 0.5, 2.0) and net.refine
    for x, result in zip((an_image(50, 70), an_image(64, 64)), net([an_image(50, 70), an_image()])):
        people = result["instances"]
        assert people.image_size == tuple(x["image"].shape[1:])
        assert len(people) and people.pred_boxes.nonempty().all()
        assert ((people.pred_keypoints[..., 2] >= 0) & (people.pred_keypoints[..., 2] <= 1)).all()
    # One view finds others, and without filling joints are missing. Where and which:
    # test_filled_joints.py.
    x = an_image(50, 70)
    several = net([x])[0]["instances"].pred_keypoints
    net.refine = False
    unfilled = net([x])[0]["instances"].pred_keypoints
    assert len(several) == len(unfilled)
    assert (several[..., 2] > 0).sum() > (unfilled[..., 2] > 0).sum()
    net.scales = ()
    one = net([x])[0]["instances"].pred_keypoints
    assert one.shape != unfilled.shape or not torch.allclose(one, unfilled)


def test_who_was_filled_up_does_not_outrank_whom_she_was_filled_from():
    """One whole person and one stray peak with a higher value and another tag."""
    maps, tags = torch.zeros(1, K, 16, 16), torch.full((1, K, 16, 16), 3.0)
    for joint in range(K):
        maps[0, joint, 2 + joint % 8, 3 + joint // 8] = 0.6
    maps[0, 9, 14, 14], tags[0, 9, 14, 14] = 0.9, 4.2
    ((people, scores),) = head().inference(maps, tags, [(64, 64)], fill=True)
    assert len(people) == 2 and (people[..., 2] > 0).all()
    whole, stray = scores.max(), scores.min()
    # Means over all joints of what was grouped: 17 of 0.6; one of 0.9.
    torch.testing.assert_close(torch.stack([whole, stray]), torch.tensor([0.6, 0.9 / K]))
    assert people[scores.argmin(), 9, 2] == pytest.approx(0.9)
    ((_, plain),) = head().inference(maps, tags, [(64, 64)], fill=False)
    torch.testing.assert_close(plain, scores)


def test_other_parts_and_backbones_are_refused(paper_config):
    cfg = paper_config("UnifiedAssociation/AE.yaml", [*TINY, "MODEL.TRAIN_PARTS", "['person']"])
    with pytest.raises(ValueError, match=r"MODEL.TRAIN_PARTS is \['person'\]"):
        build_model(cfg)
    cfg = paper_config(
        "MultiPoseNet/R_18_small.yaml", ["MODEL.META_ARCHITECTURE", "AssociativeEmbedding"]
    )
    with pytest.raises(ValueError, match="tags need StackedHourglass"):
        build_model(cfg)
