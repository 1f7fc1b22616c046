"""Pose regression as a whole: targets, losses against loops, what gradients reach, ranking."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage

from mpn_d2.codecs.offsets import Locations
from mpn_d2.modeling.heads.location_targets import make_location_targets
from mpn_d2.modeling.heads.pose_scoring import OKSFilter
from mpn_d2.modeling.meta_arch.regression_losses import PoseRegressionLosses
from mpn_d2.structures.outputs import LocationOutputs
from mpn_d2.structures.skeleton import get_skeleton
from tests.test_contract import BATCHES

COCO = get_skeleton("coco")
K = COCO.num_keypoints
SMALL = "PoseRegression/R_18_small.yaml"
KEYS = "MODEL.POSE_REGRESSION."
WEIGHTS = {
    "cls": 1.0, "heatmap": 4.0, "init": 0.05, "refine": 0.1, "psm": 1.0, "centerness": 1.0,
}  # fmt: skip


def person(corner, side, labelled=K):
    """(K, 3) joints spread over a square."""
    joints = torch.rand(K, 3) * side + torch.tensor(corner + (0.0,))
    joints[0, :2] = torch.tensor(corner)
    joints[1, :2] = torch.tensor(corner) + side
    joints[:, 2] = (torch.arange(K) < labelled) * 2.0
    return joints


def people(size, keypoints, areas=None):
    joints = torch.stack(keypoints) if keypoints else torch.zeros(0, K, 3)
    instances = Instances(size)
    low, high = joints[..., :2].amin(dim=1), joints[..., :2].amax(dim=1)
    instances.gt_boxes = Boxes(torch.cat([low - 6, high + 6], dim=1))
    instances.gt_classes = torch.zeros(len(joints), dtype=torch.long)
    instances.gt_keypoints = Keypoints(joints)
    if areas is not None:
        instances.gt_areas = torch.tensor(areas)
    return instances


@pytest.fixture()
def batch():
    """Targets of two images of 64 x 96, three people and one, an unlabelled one and a crowd."""
    locations = Locations.of_grids([(8, 12), (4, 6)], [8, 16])
    first = [person((4.0, 4.0), 30.0), person((50.0, 10.0), 40.0, 5), person((40.0, 30.0), 6.0)]
    unlabelled = person((70.0, 40.0), 20.0, 0)
    instances = [
        people((64, 96), [*first, unlabelled], [900.0, 1600.0, 36.0, 400.0]),
        people((64, 96), [person((20.0, 12.0), 44.0)], [1936.0]),
    ]
    masks = [torch.zeros(16, 24, dtype=torch.uint8) for _ in range(2)]
    masks[0][10:15, 17:23] = 1
    masks[1][:2, :2] = 2  # of the person mask alone
    return locations, instances, masks


def targets_of(batch, sampling="center"):
    locations, instances, masks = batch
    return make_location_targets(instances, masks, locations, sampling=sampling, radius=1.5)


def test_targets(batch):
    locations, instances, _ = batch
    targets = targets_of(batch)
    # Without labelled joints nobody has locations; everybody else has.
    assert [len(k) for k in targets.keypoints] == [3, 1]
    assert set(targets.owners[0].tolist()) == {-1, 0, 1, 2}
    assert targets.areas[0].tolist() == [900.0, 1600.0, 36.0]
    # Ignored: points in cells 17..22 x 10..14 of stride 4.
    inside = (locations.points >= torch.tensor([68.0, 40.0])) & (
        locations.points < torch.tensor([92.0, 60.0])
    )
    assert torch.equal(targets.ignored[0], inside.all(dim=1)) and inside.all(dim=1).any()
    assert not targets.ignored[1].any()
    # Boxes: around the joints; annotated ones in mode bbox, with more locations.
    joints = instances[1].gt_keypoints.tensor[0, :, :2]
    expected = torch.cat([joints.amin(0), joints.amax(0)])
    torch.testing.assert_close(targets.boxes[1][0], expected)
    annotated = targets_of(batch, "bbox")
    torch.testing.assert_close(annotated.boxes[1], instances[1].gt_boxes.tensor)
    assert (annotated.owners >= 0).sum() > (targets.owners >= 0).sum()
    # Without areas: 0.53 of the box.
    instances[1].remove("gt_areas")
    torch.testing.assert_close(
        targets_of(batch).areas[1], 0.53 * instances[1].gt_boxes.area(), rtol=1e-5, atol=0
    )


def random_outputs(locations, count, targets):
    """Poses near the true ones, some of them well off, everything else random."""
    sizes = [(8, 12), (4, 6)]

    def maps(channels):
        return [torch.randn(count, channels, *size, requires_grad=True) for size in sizes]

    def poses(noise):
        levels = []
        for level, (size, stride) in enumerate(zip(sizes, (8, 16), strict=True)):
            values = torch.randn(count, 2 * K, *size)
            start = sum(locations.counts[:level])
            for n in range(count):
                for cell in range(size[0] * size[1]):
                    owner = int(targets.owners[n, start + cell])
                    if owner < 0:
                        continue
                    goal = targets.keypoints[n][owner, :, :2] - locations.points[start + cell]
                    value = (goal / stride).flatten() + noise * torch.rand(()) * torch.randn(2 * K)
                    values[n, :, cell // size[1], cell % size[1]] = value
            levels.append(values.requires_grad_())
        return levels

    joint_logits = torch.randn(count, K, *sizes[0], requires_grad=True)
    return LocationOutputs(maps(1), poses(0.8), poses(0.3), maps(1), maps(1), joint_logits)


def slow_losses(outputs, locations, targets, config):
    """Spec sections 8 to 10, one location at a time."""
    flat = {
        name: torch.cat([x.flatten(2) for x in getattr(outputs, name)], dim=2)
        for name in (
            "cls_logits", "first_offsets", "final_offsets", "score_logits", "centerness_logits",
        )
    }  # fmt: skip
    sigmas = torch.tensor(COCO.sigmas)

    def bce(logit, y):
        p = logit.sigmoid()
        return -(y * p.log() + (1 - y) * (1 - p).log())

    def focal(logit, y):
        p = logit.sigmoid()
        p_t = p if y else 1 - p
        return -(0.25 if y else 0.75) * (1 - p_t) ** 2 * p_t.log()

    def oks(pose, image, who):
        joints, area = targets.keypoints[image][who], max(float(targets.areas[image][who]), 1.0)
        terms = [
            torch.exp(-((pose[k] - joints[k, :2]) ** 2).sum() / (2 * area * (2 * sigmas[k]) ** 2))
            for k in range(K)
            if joints[k, 2] > 0
        ]
        return sum(terms) / len(terms)

    def smooth_l1(value, goal):
        d = abs(value - goal)
        return d**2 / 2 if d < 1 else d - 0.5

    found = []
    for n, r in (targets.owners >= 0).nonzero().tolist():
        owner, point, stride = int(targets.owners[n, r]), locations.points[r], locations.strides[r]
        entry = {"n": n, "r": r, "owner": owner}
        for stage in ("first", "final"):
            offsets = flat[f"{stage}_offsets"][n, :, r]
            pose = point + offsets.detach().view(K, 2) * stride
            every = [oks(pose, n, who) for who in range(len(targets.keypoints[n]))]
            joints = targets.keypoints[n][owner]
            loss = sum(
                smooth_l1(offsets[2 * k + axis], (joints[k, axis] - point[axis]) / stride)
                for k in range(K)
                if joints[k, 2] > 0
                for axis in (0, 1)
            )
            entry |= {stage: loss, f"{stage}_oks": max(every), f"{stage}_own": every[owner]}
        found.append(entry)
    for entry in found:
        rivals = [e["first_own"] for e in found if all(e[x] == entry[x] for x in ("n", "owner"))]
        entry["kept"] = (
            config.oks_filter is None
            or entry["first_oks"] >= config.oks_filter.threshold
            or (config.oks_filter.keep_best and entry["first_own"] == max(rivals))
        )
    kept = [e for e in found if e["kept"]]

    def weight(entry, stage):
        return entry[f"{stage}_oks"] if config.weigh_by_oks else 1.0

    ones = {(e["n"], e["r"]) for e in (kept if config.relabel_dropped else found)}
    cls = sum(
        focal(flat["cls_logits"][n, 0, r], (n, r) in ones)
        for n in range(2)
        for r in range(len(locations.points))
        if targets.owners[n, r] >= 0 or not targets.ignored[n, r]
    )
    losses = {"cls": cls / (len(ones) + 2)}
    for name, stage, poses in (("init", "first", found), ("refine", "final", kept)):
        total = sum(weight(e, stage) * e[stage] for e in poses)
        losses[name] = total / sum(weight(e, stage) for e in poses)
    target = {"refined": "final_oks", "init": "first_oks"}[config.score_target]
    scores = [bce(flat["score_logits"][e["n"], 0, e["r"]], e[target]) for e in kept]
    losses["psm"] = sum(scores) / len(kept)
    centers = []
    for e in found:
        x1, y1, x2, y2 = targets.boxes[e["n"]][e["owner"]]
        x, y = locations.points[e["r"]]
        sides = [(x - x1, x2 - x), (y - y1, y2 - y)]
        goal = 1.0
        for a, b in sides:
            goal = goal * min(a, b).clamp(min=0) / max(a, b)
        centers.append(bce(flat["centerness_logits"][e["n"], 0, e["r"]], goal**0.5))
    losses["centerness"] = sum(centers) / len(found)
    cells = {}
    for n in range(2):
        for joints in targets.keypoints[n]:
            for k in range(K):
                if joints[k, 2] > 0:
                    x, y = (joints[k, :2] / 8).floor().int().tolist()
                    cells[n, min(y, 7), min(x, 11)] = k
    heat = sum(
        focal(outputs.joint_logits[n, k, y, x], cells.get((n, y, x)) == k)
        for n in range(2)
        for k in range(K)
        for y in range(8)
        for x in range(12)
        if cells.get((n, y, x)) == k or not targets.ignored[n, y * 12 + x]
    )
    losses["heatmap"] = heat / (len(cells) + 2)
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}, len(kept)


@pytest.mark.parametrize(
    "options",
    [
        {"oks_filter": OKSFilter(0.5)},
        {"oks_filter": OKSFilter(0.6, keep_best=False), "relabel_dropped": False},
        {"weigh_by_oks": False, "score_target": "init"},
    ],
)
def test_losses_and_gradients_against_loops(batch, options):
    locations, targets = batch[0], targets_of(batch)
    outputs = random_outputs(locations, 2, targets)
    config = PoseRegressionLosses(sigmas=COCO.sigmas, weights=WEIGHTS, **options)
    losses, numbers = config(outputs, locations, targets)
    expected, kept = slow_losses(outputs, locations, targets, config)
    assert losses.keys() == expected.keys()
    for name in losses:
        torch.testing.assert_close(
            losses[name].double(), expected[name].double(), rtol=1e-4, atol=1e-5, msg=name
        )
    positives = int((targets.owners >= 0).sum())
    assert numbers == {"positives": positives / 2, "kept": kept / 2}
    assert (kept < positives) == (config.oks_filter is not None)
    leaves = [
        *outputs.cls_logits, *outputs.first_offsets, *outputs.final_offsets,
        *outputs.score_logits, *outputs.centerness_logits, outputs.joint_logits,
    ]  # fmt: skip
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    references = torch.autograd.grad(sum(expected.values()), leaves)
    for found, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-3)


def model_of(paper_config, **options):
    pairs = [text for key, value in options.items() for text in (KEYS + key, str(value))]
    return build_model(paper_config(SMALL, pairs))


def losses_of(model, inputs):
    with EventStorage():
        return model(inputs)


def test_nothing_flows_from_the_second_stage_into_the_first(paper_config):
    """Alignment and residual are detached (spec sections 4 and 5)."""
    model = model_of(paper_config).train()
    losses = losses_of(model, BATCHES["people"])
    first = [*model.head.first_output.parameters(), model.head.first_scales]
    for name in ("refine", "psm", "cls"):
        found = torch.autograd.grad(
            losses[f"loss_pose_{name}"], first, allow_unused=True, retain_graph=True
        )
        assert all(g is None for g in found), name
    found = torch.autograd.grad(losses["loss_pose_init"], first)
    assert all(g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize("mode", ["map", "keypoint", "none"])
@pytest.mark.parametrize("stages", [1, 2])
def test_every_alignment_and_stage(paper_config, mode, stages):
    options = {"ALIGN.MODE": mode, "NUM_STAGES": stages, "ALIGN.CLS": mode != "none"}
    options |= {"FILTER.ENABLED": stages == 2, "TRAIN_CENTERNESS": True}
    model = model_of(paper_config, **options).train()
    losses = losses_of(model, BATCHES["people"])
    names = {"cls", "init", "psm", "centerness", "heatmap"} | ({"refine"} if stages == 2 else set())
    assert set(losses) == {f"loss_pose_{name}" for name in names}
    sum(losses.values()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent
    with torch.no_grad():
        features = [torch.randn(1, 64, 4, 4)] * 5
        outputs = model.eval().head.layers(features)
    assert outputs.joint_logits is None
    assert outputs.pose_offsets[0].shape == (1, 2 * K, 4, 4)


def test_another_skeleton(paper_config):
    model = build_model(paper_config(SMALL, ["MODEL.SKELETON", "crowdpose"]))
    assert model.head.first_output.out_channels == 28
    assert len(model.pose_losses.sigmas) == 14


def test_person_smaller_than_a_cell_trains(paper_config):
    inputs = [dict(BATCHES["people"][1])]
    instances = people((64, 96), [person((30.0, 30.0), 3.0)])
    inputs[0]["instances"] = instances
    model = model_of(paper_config).train()
    losses = losses_of(model, inputs)
    assert losses["loss_pose_init"] > 0 and losses["loss_pose_refine"] > 0
    assert all(torch.isfinite(v) for v in losses.values())


def decided(model, cls, psm, offsets):
    """People of a level of 1 x 3 cells of stride 8."""
    locations = Locations.of_grids([(1, 3)], [8])
    cls_scores = torch.tensor(cls)
    return model.inference_single_image(
        locations, cls_scores, cls_scores * torch.tensor(psm), offsets, (100, 400)
    )


def test_the_product_of_scores_ranks_poses(paper_config):
    """By the classification alone another of two overlapping poses would stay first."""
    model = model_of(paper_config).eval()
    pose = torch.rand(K, 2) * 4 - 1
    offsets = torch.stack([pose.flatten()] * 3)
    offsets[2, 0::2] += 30.0
    cls, psm = [0.9, 0.6, 0.04], [0.3, 0.8, 1.0]
    found = decided(model, cls, psm, offsets)
    # The third is no candidate (0.04 below 0.05), the second is first.
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
    expected = points[1] + 8 * pose
    torch.testing.assert_close(found.pred_keypoints[0, :, :2], expected)
    iou = torch.tensor(1.0)
    boxes = [torch.cat([p.amin(0), p.amax(0)]) for p in (points[:, None] + 8 * pose)]
    low, high = torch.maximum(*boxes)[:2], torch.minimum(*boxes)[2:]
    common = (high - low).clamp(min=0).prod()
    area = (boxes[0][2:] - boxes[0][:2]).prod()
    iou = common / (2 * area - common)
    assert iou > 0.3
    torch.testing.assert_close(found.scores, torch.stack([torch.tensor(0.48), 0.27 * (1 - iou)]))
    assert torch.equal(found.scores, found.pose_scores)
    assert (found.pred_keypoints[..., 2] == found.scores[:, None]).all()
    # Ranked by the classification the first stays first.
    alone = decided(model, cls, [1.0, 1.0, 1.0], offsets)
    torch.testing.assert_close(alone.pred_keypoints[0, :, :2], points[0] + 8 * pose)


@pytest.mark.parametrize("score", ["cls", "centerness", "psm"])
def test_what_the_score_is(paper_config, score):
    model = model_of(paper_config, TEST_SCORE=score, TRAIN_CENTERNESS=True).eval()
    outputs = LocationOutputs(
        [torch.randn(2, 1, 3, 2)], [torch.zeros(2, 2 * K, 3, 2)],
        score_logits=[torch.randn(2, 1, 3, 2)], centerness_logits=[torch.randn(2, 1, 3, 2)],
    )  # fmt: skip
    cls_scores, scores = model.score_locations(outputs)
    factors = {"psm": outputs.score_logits, "centerness": outputs.centerness_logits}
    expected = outputs.cls_logits[0].sigmoid()
    torch.testing.assert_close(cls_scores, expected.flatten(1))
    if score != "cls":
        expected = expected * factors[score][0].sigmoid()
    torch.testing.assert_close(scores, expected.flatten(1))


def test_no_candidate_is_an_empty_result(paper_config):
    model = model_of(paper_config).eval()
    model.test_score_thresh = 1.0
    (result,) = model([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8)}])
    assert len(result["instances"]) == 0
    assert result["instances"].pred_keypoints.shape == (0, K, 3)
    assert result["instances"].image_size == (50, 70)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([KEYS + "ALIGN.MODE", "near"], r"ALIGN\.MODE is 'near'.*map, keypoint, none"),
        ([KEYS + "ALIGN.GROUPS", "7"], r"ALIGN\.GROUPS is 7.*64 channels"),
        ([KEYS + "ALIGN.MODE", "none", KEYS + "ALIGN.CLS", "True"], r"ALIGN\.CLS needs"),
        ([KEYS + "NUM_STAGES", "3"], r"NUM_STAGES is 3"),
        ([KEYS + "NUM_STAGES", "1"], r"FILTER\.ENABLED needs .*NUM_STAGES 2"),
        ([KEYS + "SAMPLING.MODE", "all"], r"SAMPLING\.MODE is 'all'.*center, bbox"),
        ([KEYS + "SAMPLING.RADIUS", "0.0"], r"SAMPLING\.RADIUS is 0\.0"),
        ([KEYS + "PSM.TARGET", "last"], r"PSM\.TARGET is 'last'.*refined, init"),
        ([KEYS + "TEST_SCORE", "box"], r"TEST_SCORE is 'box'"),
        ([KEYS + "TRAIN_PSM", "False"], r"TEST_SCORE psm needs .*TRAIN_PSM"),
        ([KEYS + "TEST_SCORE", "centerness"], r"centerness needs .*TRAIN_CENTERNESS"),
        ([KEYS + "FILTER.THRESH", "1.1"], r"FILTER\.THRESH is 1\.1"),
        (
            [KEYS + "NUM_STAGES", "1", KEYS + "FILTER.ENABLED", "False", KEYS + "TRAIN_PSM"]
            + ["False", KEYS + "TEST_SCORE", "cls"],
            r"ALIGN\.MODE map has nothing to align",
        ),
        ([KEYS + "HEATMAP.DIM", "0"], r"HEATMAP\.DIM is 0"),
        ([KEYS + "MIN_SCORE", "2.0"], r"MIN_SCORE is 2\.0"),
        ([KEYS + "LOSS.PSM_WEIGHT", "-1.0"], r"LOSS\.PSM_WEIGHT is -1\.0"),
        ([KEYS + "LOSS.SMOOTH_L1_BETA", "-0.1"], r"LOSS\.SMOOTH_L1_BETA is -0\.1"),
        (
            ["MODEL.HRNET.WIDTH", "0", "MODEL.POSE_FPN.BOTTOM_UP", "build_hrnet_backbone"],
            r"HRNET\.WIDTH is 0",
        ),
        (["MODEL.RETINANET.NUM_CONVS", "-1"], r"NUM_CONVS is -1"),
        (["MODEL.RETINANET.IN_FEATURES", "['p4', 'p3']"], r"strides \[16, 8\].*fine to coarse"),
        (["MODEL.RETINANET.IN_FEATURES", "[]"], r"IN_FEATURES is \[\].*fine to coarse"),
        (["MODEL.RETINANET.PRIOR_PROB", "0.0"], r"PRIOR_PROB is 0\.0"),
        (["MODEL.RETINANET.IN_FEATURES", "['p3', 'k2']"], r"IN_FEATURES names \['k2'\]"),
        (["MODEL.TRAIN_PARTS", "['person']"], r"TRAIN_PARTS is \['person'\].*pose"),
        (["EVAL.BOX_SOURCE", "gt"], r"EVAL\.BOX_SOURCE is 'gt'"),
        (["EVAL.HEATMAPS", "True"], r"EVAL\.HEATMAPS.*no heatmaps"),
        (["EVAL.TASKS", "['sem_seg']"], r"EVAL\.TASKS.*no person mask"),
    ],
)
def test_mistakes_are_named(paper_config, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(paper_config(SMALL, options))


def test_training_fields_are_asked_for(paper_config):
    with pytest.raises(ValueError, match="no 'instances'"):
        model_of(paper_config).train()([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
