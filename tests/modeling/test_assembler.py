"""The whole assembly: pair scores by a slow loop, odd inputs."""

from __future__ import annotations

import math

import pytest
import torch
from assembler_cases import (
    EMPTY_CANDIDATES,
    MATCHINGS,
    ONE_TO_ONE,
    SIZE,
    K,
    assemble_grids,
    assembler,
    network,
    random_batch,
)

from mpn_d2.modeling.assembly.grid_networks import IdentityNetwork, MaxNetwork
from mpn_d2.modeling.assembly.matching import ArgmaxMatching
from mpn_d2.structures.outputs import Candidates, HeatmapOutputs


def slow_pair_score(point, score, box, evidence, window=15, margin=0.21):
    """S of spec 5.6 for one box and candidate; evidence is the (h, w) grid of the type."""
    width, height = box[2] - box[0], box[3] - box[1]
    if not box[0] - margin * width < point[0] < box[2] + margin * width:
        return 0.0
    if not box[1] - margin * height < point[1] < box[3] + margin * height:
        return 0.0
    column = int((point[0] - box[0]) * (36 / math.ceil(width)))
    row = int((point[1] - box[1]) * (56 / math.ceil(height)))
    column, row = min(max(column, 0), 35), min(max(row, 0), 55)
    reach = window // 2
    patch = evidence[
        max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1
    ]
    return score * patch.sum().item()


def slow_assembly(candidates, boxes, evidence):
    """Candidate ids (P, K) of one image by mutual best, one pair at a time."""
    chosen = torch.full((len(boxes), K), -1)
    pairs = []
    for b, box in enumerate(boxes.tolist()):
        for i in range(len(candidates)):
            kind = int(candidates.types[i])
            value = slow_pair_score(
                candidates.points[i].tolist(), candidates.scores[i].item(), box, evidence[b, kind]
            )
            pairs.append((-value, b, i, kind))
    # Without ties, iterated mutual best is the same as taking the best free pair again and again.
    taken = set()
    for value, b, i, kind in sorted(pairs):
        if value < 0 and chosen[b, kind] < 0 and i not in taken:
            chosen[b, kind] = i
            taken.add(i)
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_equals_slow_assembly_with_any_evidence(seed):
    model = assembler()
    candidates, boxes, _ = random_batch(seed)
    batch = model.collate(candidates, boxes)
    evidence = torch.rand(sum(len(b) for b in boxes), K, *SIZE)
    poses = assemble_grids(model, batch, evidence)
    assert sum(int((pose.candidate_ids >= 0).sum()) for pose in poses) > 10
    for image, per_image in enumerate(evidence.split([len(b) for b in boxes])):
        wanted = slow_assembly(candidates[image], boxes[image], per_image)
        pose = poses[image]
        assert torch.equal(pose.candidate_ids, wanted)
        for b in range(len(boxes[image])):
            total = 0.0
            for kind in range(K):
                i = int(wanted[b, kind])
                expected = [0.0, 0.0, 0.0]
                if i >= 0:
                    score = candidates[image].scores[i].item()
                    expected = [*candidates[image].points[i].tolist(), score]
                    assert candidates[image].types[i] == kind
                    total += score
                assert pose.keypoints[b, kind].tolist() == pytest.approx(expected)
            assert pose.scores[b].item() == pytest.approx(total / K)


@pytest.mark.parametrize("matching", MATCHINGS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", ["prn", "identity", "max"])
def test_batch_equals_one_by_one(matching, kind):
    evidence = {"prn": network, "identity": IdentityNetwork, "max": lambda: MaxNetwork(sigma=2.0)}
    model = assembler(
        evidence[kind](), matching, fallback="argmax", pose_score=["keypoints", "box"]
    )
    candidates, boxes, scores = random_batch(3)
    together = model.inference(candidates, boxes, scores)
    for image in range(len(boxes)):
        part = slice(image, image + 1)
        alone = model.inference(candidates[part], boxes[part], scores[part])[0]
        assert torch.equal(alone.candidate_ids, together[image].candidate_ids)
        torch.testing.assert_close(alone.keypoints, together[image].keypoints)
        torch.testing.assert_close(alone.scores, together[image].scores)


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
def test_no_candidate_goes_to_two_boxes(matching):
    candidates, boxes, _ = random_batch(1, ((12, 40), (30, 25)))
    for pose in assembler(network(), matching).inference(candidates, boxes):
        taken = pose.candidate_ids[pose.candidate_ids >= 0].tolist()
        assert len(taken) == len(set(taken)) > 5


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
def test_two_overlapping_people_with_a_known_answer(matching):
    """Two people side by side; the oracle label of each box names its owner's joints."""
    left = torch.tensor([[30.0, 20.0, 2.0], [30.0, 60.0, 2.0], [30.0, 100.0, 2.0]])
    right = left + torch.tensor([40.0, 0.0, 0.0])
    boxes = torch.tensor([[0.0, 0.0, 80.0, 120.0], [25.0, 0.0, 105.0, 120.0]])
    people = torch.stack([right, left])  # candidates of the right one come first
    types = torch.arange(K).repeat(2)
    candidates = Candidates(people[..., :2].flatten(0, 1), types, torch.full((6,), 0.9))
    samples = [
        {"keypoints": people, "owner": 1, "box": boxes[0]},
        {"keypoints": people, "owner": 0, "box": boxes[1]},
    ]
    model = assembler(matching=matching)
    _, labels = model.evidence.encode_samples(samples)
    poses = assemble_grids(model, model.collate([candidates], [boxes]), labels)[0]
    assert poses.candidate_ids.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert torch.equal(poses.keypoints[0, :, :2], left[:, :2])
    assert poses.scores.tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("matching", MATCHINGS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("fallback", ["none", "argmax"])
def test_empty_inputs(matching, fallback):
    model = assembler(network(), matching, fallback=fallback)
    some = Candidates(torch.tensor([[5.0, 5.0]]), torch.tensor([1]), torch.tensor([0.7]))
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert model.inference([], []) == []
    nothing = model.inference([EMPTY_CANDIDATES], [torch.zeros(0, 4)])[0]
    assert nothing.keypoints.shape == (0, K, 3) and nothing.candidate_ids.shape == (0, K)
    assert model.inference([some], [torch.zeros(0, 4)], [torch.zeros(0)])[0].scores.shape == (0,)
    alone = model.inference([EMPTY_CANDIDATES], [box])[0]
    assert alone.scores.tolist() == [0.0] and (alone.candidate_ids == -1).all()
    assert (alone.keypoints[..., 2] == 0).all()
    mixed = model.inference([EMPTY_CANDIDATES, some], [box, box])
    assert mixed[1].candidate_ids.tolist() == [[-1, 0, -1]]
    assert mixed[1].scores.item() == pytest.approx(0.7 / K)


@pytest.mark.parametrize("matching", MATCHINGS, ids=lambda m: type(m).__name__)
def test_boxes_without_area_get_nothing(matching):
    point = Candidates(torch.tensor([[5.0, 5.0]]), torch.tensor([0]), torch.tensor([1.0]))
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 9.0, 9.0], [5.0, 0.0, 5.0, 9.0]])
    pose = assembler(network(), matching).inference([point], [boxes])[0]
    assert pose.candidate_ids[:, 0].tolist() == [-1, 0, -1]
    assert torch.isfinite(pose.keypoints).all() and torch.isfinite(pose.scores).all()


def test_joints_of_one_type_in_one_cell_stay_two_candidates():
    points = torch.tensor([[5.0, 5.0], [5.2, 5.2]])
    candidates = Candidates(points, torch.tensor([0, 0]), torch.tensor([0.5, 0.6]))
    boxes = torch.tensor([[0.0, 0.0, 100.0, 200.0], [1.0, 0.0, 100.0, 200.0]])
    pose = assembler().inference([candidates], [boxes])[0]
    assert sorted(pose.candidate_ids[:, 0].tolist()) == [0, 1]


def test_low_scored_boxes_claim_nothing_and_box_scores_weigh_poses():
    candidates = Candidates(torch.tensor([[5.0, 5.0]]), torch.tensor([0]), torch.tensor([0.9]))
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 9.0, 9.0]])
    scores = torch.tensor([0.3, 0.5])
    model = assembler(box_score_thresh=0.5, fallback="argmax")
    pose = model.inference([candidates], [boxes], [scores])[0]
    assert pose.candidate_ids[:, 0].tolist() == [-1, 0]
    assert pose.keypoints[0].abs().sum() == 0 and pose.scores[0] == 0
    assert pose.scores[1].item() == pytest.approx(0.9 / K)
    weighed = assembler(box_score_thresh=0.5, pose_score=["keypoints", "box"])
    pose = weighed.inference([candidates], [boxes], [scores])[0]
    assert pose.scores[1].item() == pytest.approx(0.9 / K * 0.5)
    # True boxes have no score: all take part, as with score 1.
    assert weighed.inference([candidates], [boxes])[0].scores.max().item() == pytest.approx(0.3)


def test_pose_scores_are_products_of_what_they_are_made_of():
    boxes = torch.tensor([[0.0, 0.0, 72.0, 112.0]])
    points = torch.tensor([[11.0, 11.0], [61.0, 101.0]])
    candidates = Candidates(points, torch.tensor([0, 2]), torch.tensor([0.5, 0.9]))
    grids = torch.zeros(1, K, *SIZE)
    grids[0, 0, 5, 5], grids[0, 2, 50, 30] = 0.4, 0.2
    wanted = {"box": 0.7, "keypoints": 1.4 / K, "evidence": (0.5 * 0.4 + 0.9 * 0.2) / 2}
    for names in (["box"], ["keypoints"], ["evidence"], ["evidence", "box"], list(wanted)):
        model = assembler(pose_score=names)
        batch = model.collate([candidates], [boxes], [torch.tensor([0.7])])
        score = assemble_grids(model, batch, grids)[0].scores.item()
        assert score == pytest.approx(math.prod(wanted[name] for name in names), rel=1e-5)
        nothing = assemble_grids(model, batch, torch.zeros_like(grids))[0]
        assert nothing.scores.tolist() == [0.0]
    with pytest.raises(ValueError, match=r"POSE_SCORE.*box, keypoints, evidence"):
        assembler(pose_score=["size"])
    with pytest.raises(ValueError, match="POSE_SCORE"):
        assembler(pose_score=[])


def test_fallback_fills_joints_at_the_largest_evidence_without_score():
    model = assembler(fallback="argmax")
    boxes = torch.tensor([[100.0, 50.0, 172.0, 162.0]])
    evidence = torch.zeros(1, K, *SIZE)
    evidence[0, 0, 10, 20] = evidence[0, 1, 3, 4] = 1.0
    point = Candidates(torch.tensor([[141.0, 71.0]]), torch.tensor([0]), torch.tensor([0.8]))
    pose = assemble_grids(model, model.collate([point], [boxes]), evidence)[0]
    assert pose.keypoints[0, 0].tolist() == pytest.approx([141.0, 71.0, 0.8])
    # Cell (4, 3), two pixels a side: its centre is at 2 * 4.5 and 2 * 3.5 in the box.
    assert pose.keypoints[0, 1].tolist() == pytest.approx([109.0, 57.0, 0.0])
    assert pose.keypoints[0, 2].tolist() == [0.0, 0.0, 0.0]  # no evidence: nothing invented
    assert pose.candidate_ids.tolist() == [[0, -1, -1]]
    assert pose.scores.item() == pytest.approx(0.8 / K)


def test_argmax_matching_puts_the_joint_at_the_evidence():
    model = assembler(matching=ArgmaxMatching())
    boxes = torch.tensor([[100.0, 50.0, 172.0, 162.0]])
    evidence = torch.zeros(1, K, *SIZE) + 1e-6
    evidence[0, 0, 10, 20] = 1.0
    points = torch.tensor([[141.0, 75.0], [120.0, 71.0], [300.0, 71.0]])
    candidates = Candidates(points, torch.tensor([0, 0, 0]), torch.tensor([0.8, 1.0, 1.0]))
    pose = assemble_grids(model, model.collate([candidates], [boxes]), evidence)[0]
    assert pose.keypoints[0, 0].tolist() == pytest.approx([141.0, 71.0, 0.8])
    assert pose.candidate_ids.tolist() == [[0, -1, -1]]


def test_heatmap_mode_crops_the_maps_and_passes_gradients():
    prn = network(dropout=0.0)
    model = assembler(prn, mode="heatmap")
    candidates, boxes, _ = random_batch(2)
    maps = torch.rand(len(boxes), K + 1, 50, 60, requires_grad=True)
    outputs = HeatmapOutputs(maps, stride=4)
    batch = model.collate(candidates, boxes)
    inputs = model.evidence.encode_people(batch, outputs)
    prn.loss(inputs, torch.rand_like(inputs) * 0.04).backward()
    assert maps.grad[0, :K].abs().sum() > 0 and maps.grad[:, K].abs().sum() == 0
    assert maps.grad[1].abs().sum() == 0  # no box in that image
    assert prn.output.weight.grad.abs().sum() > 0
    assert len(model.inference(candidates, boxes, maps=outputs)) == len(boxes)
    with pytest.raises(ValueError, match="INPUT_MODE"):
        model.inference(candidates, boxes)


def test_bad_input_is_named():
    model = assembler()
    wrong = Candidates(torch.zeros(1, 2), torch.tensor([K]), torch.ones(1))
    box = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="keypoint types"):
        model.inference([wrong], [box])
    with pytest.raises(ValueError, match="one entry per image"):
        model.inference([EMPTY_CANDIDATES], [box, box])
    with pytest.raises(ValueError, match="one entry per image"):
        model.inference([EMPTY_CANDIDATES], [box], [])
    with pytest.raises(ValueError, match="FALLBACK"):
        assembler(fallback="guess")


def test_nan_points_and_evidence_assign_nothing():
    points = torch.tensor([[float("nan"), 5.0], [5.0, 5.0]])
    candidates = Candidates(points, torch.tensor([0, 1]), torch.ones(2))
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    model = assembler()
    assert model.inference([candidates], [box])[0].candidate_ids.tolist() == [[-1, 1, -1]]
    evidence = torch.full((1, K, *SIZE), float("nan"))
    pose = assemble_grids(model, model.collate([candidates], [box]), evidence)[0]
    assert (pose.candidate_ids == -1).all() and torch.isfinite(pose.keypoints).all()
