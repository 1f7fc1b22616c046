"""Targets and losses of a whole part against slow references; ignored places give no gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mpn_d2.modeling.heads import KeypointSubnet, SingleLevelSubnet

K = 3
STRIDES = {"k2": 4, "k3": 8, "k4": 16, "k5": 32}


# ---------------------------------------------------------------- keypoint part


def keypoint_head(kind, **options):
    shapes = {name: ShapeSpec(channels=6, stride=s) for name, s in STRIDES.items()}
    sizes = {"d_dim": 4, "smooth_dim": 8} if kind is KeypointSubnet else {}
    return kind(input_shape=shapes, num_keypoints=K, **sizes, **options).train()


def features(height, width, batch=2):
    return {name: torch.randn(batch, 6, height // s, width // s) for name, s in STRIDES.items()}


def slow_keypoint_losses(outputs, keypoints, person, ignore, weights, sigma=7.0):
    """Spec sections 6 and 8 cell by cell: {loss name: value} of one batch."""
    count, _, height, width = outputs.maps.shape
    levels = {"final": (outputs.maps, 4)}
    levels |= {name: (m, STRIDES[name]) for name, m in outputs.intermediate.items()}
    sums = dict.fromkeys(levels, 0.0)
    for n in range(count):
        for i in range(height):
            for j in range(width):
                inside = i < ignore[n].shape[0] and j < ignore[n].shape[1]
                hidden = int(ignore[n][i, j]) if inside else 0
                for c in range(K + 1):
                    if c < K:
                        target = 0.0
                        for x, y, v in keypoints[n][:, c].tolist():
                            d2 = (4 * (j + 0.5) - x) ** 2 + (4 * (i + 0.5) - y) ** 2
                            value = math.exp(-d2 / (2 * sigma**2)) if v > 0 else 0.0
                            target = max(target, value if value >= 0.01 else 0.0)
                        w = 0.0 if hidden == 1 else 1.0
                    else:
                        target = float(person[n][i, j]) if inside else 0.0
                        w = 0.0 if hidden else weights["mask"]
                    for name, (maps, stride) in levels.items():
                        cell = maps[n, c, i * 4 // stride, j * 4 // stride].item()
                        sums[name] += w * (cell - target) ** 2
    factor = {name: weights["final" if name == "final" else "intermediate"] for name in sums}
    cells = count * (K + 1) * height * width
    return {f"loss_keypoint_{name}": factor[name] * s / cells for name, s in sums.items()}


@pytest.mark.parametrize("kind", [KeypointSubnet, SingleLevelSubnet])
def test_keypoint_losses_equal_a_loop_over_cells(kind):
    weights = {"final": 2.0, "intermediate": 0.5, "mask": 0.3}
    head = keypoint_head(kind, final_weight=2.0, intermediate_weight=0.5, mask_weight=0.3)
    outputs = head.layers(features(32, 64))
    keypoints = [torch.rand(2, K, 3) * torch.tensor([64.0, 32.0, 3.0]), torch.zeros(0, K, 3)]
    keypoints[0][..., 2] = keypoints[0][..., 2].floor()
    # The second image is smaller than the batch.
    person = [torch.randint(0, 2, size).byte() for size in ((8, 16), (7, 9))]
    ignore = [torch.randint(0, 3, size).byte() for size in ((8, 16), (7, 9))]
    losses = head.losses(outputs, head.make_targets(keypoints, person, ignore, (8, 16)))
    want = slow_keypoint_losses(outputs, keypoints, person, ignore, weights)
    assert set(want) == set(losses)
    assert len(want) == (5 if kind is KeypointSubnet else 4)
    for name, value in want.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("kind", [KeypointSubnet, SingleLevelSubnet])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_ignore_region_gives_exactly_no_gradient_at_any_level(kind, upsample):
    head = keypoint_head(kind, upsample=upsample)
    outputs = head.layers(features(128, 128, batch=1))
    maps = [outputs.maps, *outputs.intermediate.values()]
    for m in maps:
        m.retain_grad()
    keypoints = torch.rand(4, K, 3) * 128
    keypoints[..., 2] = 2
    ignore = torch.zeros(32, 32, dtype=torch.uint8)
    ignore[:, :16] = 1
    person = torch.ones_like(ignore)
    targets = head.make_targets([keypoints], [person], [ignore], (32, 32))
    sum(head.losses(outputs, targets).values()).backward()
    for m in maps:
        half = m.shape[-1] // 2
        # A bilinear cell beside the border reaches over it.
        far = half if upsample == "nearest" or m is outputs.maps else half - 1
        assert m.grad[..., :far].abs().max() == 0
        assert (m.grad[..., half:] != 0).float().mean() > 0.95


def test_single_level_subnet_reads_k2_and_supervises_the_rest():
    x = {name: f.requires_grad_() for name, f in features(32, 64).items()}
    head = keypoint_head(SingleLevelSubnet)
    outputs = head.layers(x)
    weight, bias = head.predictor.weight[:, :, 0, 0], head.predictor.bias
    want = torch.einsum("oc,nchw->nohw", weight, x["k2"]) + bias[:, None, None]
    torch.testing.assert_close(outputs.maps, want)
    assert list(outputs.intermediate) == ["k3", "k4", "k5"]
    assert head.eval().layers(x).intermediate == {}
    alone = keypoint_head(SingleLevelSubnet, intermediate_weight=0.0)
    assert len(alone.intermediate) == 0
    outputs = alone.layers(x)
    assert outputs.intermediate == {}
    outputs.maps.sum().backward()
    # Unread levels take part with gradient 0, so that DDP does not wait for them.
    assert all(x[name].grad.abs().sum() == 0 for name in ("k3", "k4", "k5"))
    assert x["k2"].grad.abs().sum() > 0


# ------------------------------------------------------------------ person part


def slow_anchors(height, width):
    """RetinaNet's, spec section 4: level, row, column, scale, ratio (height over width)."""
    anchors = []
    for base in (32, 64, 128, 256, 512):
        stride = base // 4
        for i in range(math.ceil(height / stride)):
            for j in range(math.ceil(width / stride)):
                for scale in (1, 2 ** (1 / 3), 2 ** (2 / 3)):
                    for ratio in (0.5, 1.0, 2.0):
                        w = base * scale / math.sqrt(ratio)
                        x, y, h = (j + 0.5) * stride, (i + 0.5) * stride, w * ratio
                        anchors.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return anchors


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def slow_labels(anchors, boxes, crowds):
    """Index of the person of each anchor, -1 for background, -2 where no loss looks."""
    iou = np.array(
        [[overlap(a, b) / (area(a) + area(b) - overlap(a, b)) for a in anchors] for b in boxes]
    ).reshape(len(boxes), len(anchors))
    labels = []
    for i, anchor in enumerate(anchors):
        best = max(range(len(boxes)), key=lambda b: iou[b, i], default=None)
        label = -1
        if best is not None:
            # Nobody goes without an anchor: her best ones count whatever their IoU (Detectron2).
            lone = any(iou[b, i] >= iou[b].max() - 1e-6 for b in range(len(boxes)))
            if iou[best, i] >= 0.5 or lone:
                label = best
            elif iou[best, i] >= 0.4:
                label = -2
        if label == -1 and any(overlap(anchor, c) > 0.5 * area(anchor) for c in crowds):
            label = -2
        labels.append(label)
    return labels


def slow_person_losses(logits, deltas, anchors, labels, boxes):
    """Sums of focal loss and smooth L1 of one image, anchor by anchor (spec section 4)."""
    focal = smooth = 0.0
    for logit, delta, anchor, label in zip(logits, deltas, anchors, labels, strict=True):
        if label == -2:
            continue
        p = 1 / (1 + math.exp(-logit))
        if label == -1:
            focal += -0.75 * p**2 * math.log(1 - p)
            continue
        focal += -0.25 * (1 - p) ** 2 * math.log(p)
        gt = boxes[label]
        aw, ah = anchor[2] - anchor[0], anchor[3] - anchor[1]
        gw, gh = gt[2] - gt[0], gt[3] - gt[1]
        target = (
            10 * ((gt[0] + gt[2]) - (anchor[0] + anchor[2])) / 2 / aw,
            10 * ((gt[1] + gt[3]) - (anchor[1] + anchor[3])) / 2 / ah,
            5 * math.log(gw / aw),
            5 * math.log(gh / ah),
        )
        for found, wanted in zip(delta, target, strict=True):
            d = abs(found - wanted)
            smooth += 0.5 * d * d / 0.1111 if d < 0.1111 else d - 0.5 * 0.1111
    return focal, smooth


HEIGHT, WIDTH = 64, 96
# The third person has four anchors of IoU 0.494, exactly equal in float32, and none above.
PEOPLE = [
    [[10.0, 10.0, 45.0, 52.0], [12.0, 8.0, 50.0, 60.0], [68.75, 20.75, 91.25, 43.25]],
    [],
    [[30.0, 1.0, 95.0, 60.0]],
]
CROWDS = [[[61.3, 0.0, 96.0, 40.0]], [[0.0, 0.0, 47.3, 64.0]], []]


@pytest.fixture()
def person_part(paper_config):
    """model, and per image: features, predictions (leaves) and annotations."""
    options = ["MODEL.PRN.NODES", "4", "MODEL.TRAIN_PARTS", "['person']"]
    model = build_model(paper_config("MultiPoseNet/R_18_small.yaml", options)).train()
    with torch.no_grad():
        pyramid = model.backbone(torch.randn(len(PEOPLE), 3, HEIGHT, WIDTH))
        head = model.head([pyramid[name] for name in model.head_in_features])
    predictions = tuple([torch.randn_like(m).requires_grad_() for m in kind] for kind in head)
    instances = []
    for boxes in PEOPLE:
        instances.append(Instances((HEIGHT, WIDTH)))
        instances[-1].gt_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
        instances[-1].gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    return model, pyramid, predictions, instances


def by_anchor(maps, image, values):
    """Per level (N, A * values, H, W) to (anchors, values) of an image, rows first."""
    levels = [m[image].view(-1, values, *m.shape[2:]).permute(2, 3, 0, 1) for m in maps]
    return torch.cat([level.reshape(-1, values) for level in levels])


def test_person_losses_equal_a_loop_over_anchors(person_part):
    model, pyramid, predictions, instances = person_part
    crowds = [torch.tensor(c).view(-1, 4) for c in CROWDS]
    with EventStorage():
        losses = model._person_losses(pyramid, predictions, instances, crowds)
    anchors = slow_anchors(HEIGHT, WIDTH)
    focal = smooth = 0.0
    positives, ignored = 0, []
    for n, boxes in enumerate(PEOPLE):
        labels = slow_labels(anchors, boxes, CROWDS[n])
        logits = by_anchor(predictions[0], n, 1)[:, 0].tolist()
        deltas = by_anchor(predictions[1], n, 4).tolist()
        part = slow_person_losses(logits, deltas, anchors, labels, boxes)
        focal, smooth = focal + part[0], smooth + part[1]
        positives += sum(label >= 0 for label in labels)
        ignored.append(torch.tensor([label == -2 for label in labels]))
    assert positives > 4 and all(flags.any() for flags in ignored)
    assert losses["loss_person_cls"].item() == pytest.approx(focal / positives, rel=1e-4)
    assert losses["loss_person_box"].item() == pytest.approx(smooth / positives, rel=1e-4)

    # Anchors between the thresholds or in a crowd: exactly no gradient; all others have one.
    sum(losses.values()).backward()
    logit_grads = [m.grad for m in predictions[0]]
    delta_grads = [m.grad for m in predictions[1]]
    for n, flags in enumerate(ignored):
        assert by_anchor(logit_grads, n, 1)[flags].abs().max() == 0
        assert (by_anchor(logit_grads, n, 1)[~flags] != 0).all()
        assert by_anchor(delta_grads, n, 4)[flags].abs().max() == 0


def test_a_crowd_that_hides_everything_leaves_no_gradient(person_part):
    model, pyramid, predictions, instances = person_part
    everywhere = torch.tensor([[-1e3, -1e3, 1e3, 1e3]])
    with EventStorage():
        losses = model._person_losses(
            pyramid, predictions, [x[:0] for x in instances], [everywhere] * len(instances)
        )
    sum(losses.values()).backward()
    assert all(v == 0 for v in losses.values())
    assert all(m.grad.abs().sum() == 0 for m in predictions[0])
