"""Learned evidence in the assembler: who belongs to whom, batches, empty and broken input."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg

from mpn_d2.config import add_mpn_config
from mpn_d2.modeling.assembly import PoseAssembler, build_pose_assembler
from mpn_d2.modeling.assembly.learned_evidence import LearnedEvidence
from mpn_d2.modeling.assembly.matching import HungarianMatching, MutualBestMatching
from mpn_d2.modeling.assembly.pair_network import PairNetwork
from mpn_d2.structures.outputs import Candidates

K = 3


def assembler(matching=None, rounds=2, **options):
    torch.manual_seed(0)
    network = PairNetwork(num_keypoints=K, width=16, message=8, box_width=16, rounds=rounds)
    return PoseAssembler(
        evidence=LearnedEvidence(network=network, sigmas=[0.05, 0.08, 0.1]),
        matching=matching or HungarianMatching(),
        num_keypoints=K,
        **options,
    ).eval()


def person(x, y, size=40.0):
    """Head above, one hand to either side; (K, 3)."""
    return torch.tensor([[x, y - size, 2.0], [x - size / 2, y, 2], [x + size / 2, y, 2]])


def people(*centres):
    keypoints = torch.stack([person(*centre) for centre in centres])
    low, high = keypoints[..., :2].amin(dim=1), keypoints[..., :2].amax(dim=1)
    return {"keypoints": keypoints, "boxes": torch.cat([low - 4, high + 4], dim=1)}


def given(sample, order=None):
    """Candidates of a sample, and the (person, type) of each."""
    row, kind = (sample["keypoints"][..., 2] > 0).nonzero().unbind(1)
    if order is not None:
        row, kind = row[order], kind[order]
    points = sample["keypoints"][row, kind, :2]
    return Candidates(points, kind, torch.ones(len(row))), row


def random_batch(seed=0, counts=((4, 9), (0, 5), (3, 0), (7, 20), (1, 1))):
    generator = torch.Generator().manual_seed(seed)
    candidates, boxes = [], []
    for number, joints in counts:
        corner = torch.rand(number, 2, generator=generator) * 100
        sides = torch.rand(number, 2, generator=generator) * 100 + 20
        boxes.append(torch.cat([corner, corner + sides], dim=1))
        points = torch.rand(joints, 2, generator=generator) * 200
        kinds = torch.randint(0, K, (joints,), generator=generator)
        candidates.append(Candidates(points, kinds, torch.rand(joints, generator=generator)))
    return candidates, boxes


def test_learns_who_owns_what_where_boxes_overlap():
    """Two people side by side so close that each hand lies in the other's box."""
    generator = torch.Generator().manual_seed(3)

    def scene():
        x, gap = torch.rand(2, generator=generator).tolist()
        return people((100 + 50 * x, 100), (118 + 50 * x + 10 * gap, 104))

    model = assembler().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = model.losses([scene() for _ in range(8)])["loss_assembly_pairs"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = total = 0
    for _ in range(20):
        sample = scene()
        candidates, row = given(sample)
        pose = model.eval().inference([candidates], [sample["boxes"]])[0]
        assert (pose.candidate_ids >= 0).all()
        right += int((row[pose.candidate_ids] == torch.arange(2)[:, None]).sum())
        total += 2 * K
    assert right / total > 0.95


@pytest.mark.parametrize("matching", [HungarianMatching(), MutualBestMatching()])
def test_batch_equals_one_by_one_and_order_does_not_matter(matching):
    model = assembler(matching)
    candidates, boxes = random_batch()
    together = model.inference(candidates, boxes)
    for image in range(len(boxes)):
        part = slice(image, image + 1)
        alone = model.inference(candidates[part], boxes[part])[0]
        assert torch.equal(alone.candidate_ids, together[image].candidate_ids)
        torch.testing.assert_close(alone.keypoints, together[image].keypoints)
    few, rows = candidates[3], torch.tensor([4, 0, 6, 2, 5, 1, 3])
    turned = Candidates(few.points.flip(0), few.types.flip(0), few.scores.flip(0))
    other = model.inference([turned], [boxes[3][rows]])[0]
    torch.testing.assert_close(other.keypoints, together[3].keypoints[rows])


def test_learns_where_a_missing_joint_lies():
    """The right hand is never a candidate; where it is follows from box, head and left hand."""
    generator = torch.Generator().manual_seed(5)

    def scene():
        x, y, size = torch.rand(3, generator=generator).tolist()
        sample = people((100 + 80 * x, 100 + 80 * y, 30 + 30 * size))
        sample["candidates"] = sample["keypoints"].clone()
        sample["candidates"][0, 2, 2] = 0.0
        return sample

    model = assembler(fallback="argmax").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        loss = model.losses([scene() for _ in range(8)])["loss_assembly_pairs"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sample = scene()
    candidates, _ = given({"keypoints": sample["candidates"]})
    pose = model.eval().inference([candidates], [sample["boxes"]])[0]
    side = float(sample["boxes"][0, 2] - sample["boxes"][0, 0])
    gap = (pose.keypoints[0, 2, :2] - sample["keypoints"][0, 2, :2]).abs().max().item()
    assert gap < 0.1 * side
    assert pose.keypoints[0, 2, 2] == 0 and pose.candidate_ids.tolist() == [[0, 1, -1]]
    # Nothing is invented for a box without any candidate.
    far = model.inference([candidates], [sample["boxes"] + 1000])[0]
    assert far.keypoints.abs().sum() == 0


def test_pairs_are_those_inside_the_margin():
    model = assembler()
    candidates, boxes = random_batch(4)
    batch = model.collate(candidates, boxes)
    scores = model.evidence.rate(batch).pair_scores
    seen = 0
    for b in range(len(batch.boxes)):
        x1, y1, x2, y2 = batch.boxes[b].tolist()
        for kind in range(K):
            for column in range(scores.shape[2]):
                x, y = batch.points[batch.image[b], kind, column].tolist()
                real = batch.ids[batch.image[b], kind, column] >= 0
                wide = x1 - 0.6 * (x2 - x1) < x < x2 + 0.6 * (x2 - x1)
                high = y1 - 0.6 * (y2 - y1) < y < y2 + 0.6 * (y2 - y1)
                assert bool(scores[b, kind, column] > 0) == bool(real and wide and high)
                seen += bool(real and wide and high)
    assert seen > 20 and scores.max() <= 1.001


def test_loss_knows_owners_by_row_also_of_degraded_samples():
    """Rows of candidates beyond the people own nothing; a moved candidate still has its owner."""
    model = assembler()
    sample = people((100, 100), (120, 104))
    extra = torch.cat(
        [sample["keypoints"], torch.tensor([[[110.0, 100, 2], [0, 0, 0], [0, 0, 0]]])]
    )
    extra[0, 1, 2] = 0.0
    noisy = {**sample, "candidates": extra}
    seen = {}

    def spy(found, pairs, owned):
        seen["owned"], seen["box"], seen["kind"] = owned, pairs.box, pairs.kind
        return real(found, pairs, owned)

    from mpn_d2.modeling.assembly import learned_evidence

    real = learned_evidence.ownership_loss
    learned_evidence.ownership_loss = spy
    try:
        model.losses([noisy])
    finally:
        learned_evidence.ownership_loss = real
    mine = sorted(zip(seen["box"][seen["owned"]].tolist(), seen["kind"][seen["owned"]].tolist()))
    assert mine == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert len(seen["owned"]) > len(mine)


def test_samples_may_carry_scores():
    sample = people((50, 60), (90, 60))
    seen = []
    model = assembler()
    model.evidence.pair_network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    scores = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    model.losses([sample, {**sample, "candidate_scores": scores}])
    pairs = seen[0]
    first = pairs.box < 2
    assert (pairs.score[first] == 1).all() and 0 < int(first.sum()) < len(first)
    owned = pairs.place[~first].sub(0.5).abs().amax(dim=1) <= 0.5
    got = {round(float(s), 4) for s in pairs.score[~first][owned]}
    assert got == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}


def test_loss_on_predictions_finds_who_owns_what():
    """Keypoints of a detector: one exact, one near, one far, one that two people are near to."""
    sample = people((100, 100), (130, 100))
    truth = sample["keypoints"].clone()
    truth[0, 2, 2] = 0.0
    points = torch.tensor(
        [
            [100.0, 60],  # head of the first, exactly
            [131, 61],  # head of the second, nearly
            [133, 63],  # the same, farther away: false
            [80, 60],  # left hand of the first, 40 pixels off: false
            [111, 100],  # left hand of the second, near
            [120, 100],  # right hand of the first, who has none
        ]
    )
    kinds = torch.tensor([0, 0, 0, 1, 1, 2])
    model, seen = assembler(), {}
    found = model.evidence._loss
    model.evidence._loss = lambda batch, pairs, place, owned, people: (
        seen.update(pairs=pairs, owned=owned) or found(batch, pairs, place, owned, people)
    )
    loss = model.losses_on_predictions(
        [Candidates(points, kinds, torch.full((6,), 0.7))], [sample["boxes"]], [truth], None
    )["loss_assembly_pairs"]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.numel() > 1)
    pairs, owned = seen["pairs"], seen["owned"]
    columns = pairs.num_candidates // K
    rows = {
        (int(b), int(k), int(c) % columns)
        for b, k, c in zip(pairs.box[owned], pairs.kind[owned], pairs.candidate[owned])
    }
    assert rows == {(0, 0, 0), (1, 0, 1), (1, 1, 1)}
    assert len(owned) > len(rows)


def test_empty_and_broken_input():
    model = assembler()
    none = Candidates(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    box = torch.tensor([[0.0, 0, 10, 10]])
    assert model.inference([none], [torch.zeros(0, 4)])[0].keypoints.shape == (0, K, 3)
    alone = model.inference([none], [box])[0]
    assert (alone.candidate_ids == -1).all() and alone.scores.tolist() == [0.0]
    some = Candidates(torch.tensor([[5.0, 5.0]]), torch.tensor([1]), torch.tensor([0.7]))
    assert model.inference([some], [torch.zeros(0, 4)])[0].scores.shape == (0,)
    assert model.inference([some], [box])[0].candidate_ids.tolist() == [[-1, 0, -1]]
    flat = torch.tensor([[5.0, 5, 5, 5], [0, 0, 9, 9], [5, 0, 5, 9]])
    assert model.inference([some], [flat])[0].candidate_ids[:, 1].tolist() == [-1, 0, -1]
    broken = Candidates(
        torch.tensor([[float("nan"), 5], [5, 5]]), torch.tensor([0, 1]), torch.ones(2)
    )
    assert model.inference([broken], [box])[0].candidate_ids.tolist() == [[-1, 1, -1]]
    with torch.no_grad():
        model.evidence.pair_network.conclude.weight.fill_(float("nan"))
    assert (model.inference([some], [box])[0].candidate_ids == -1).all()
    zero = assembler().train().losses([])["loss_assembly_pairs"]
    zero.backward()
    assert zero.item() == 0


def config(**changes):
    cfg = get_cfg()
    add_mpn_config(cfg)
    for key, value in {"EVIDENCE": "learned", "SAMPLES": "images", **changes}.items():
        cfg.MODEL.ASSEMBLER[key] = value
    return cfg


def test_from_config_and_what_it_cannot_do():
    model = build_pose_assembler(config())
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert model.evidence.by_image and len(model.evidence.pair_network.rounds) == 3
    with pytest.raises(ValueError, match=r"MODEL\.ASSEMBLER\.SAMPLES"):
        build_pose_assembler(config(SAMPLES="people"))
    assert build_pose_assembler(config(FALLBACK="argmax", MATCHING="argmax")).needs_peaks


def test_weights_of_an_assembler_fill_it_whole_or_are_refused(tmp_path):
    cfg = config()
    source = build_pose_assembler(cfg)
    path = tmp_path / "assembler.pth"
    halved = {f"assembler.{k}": v.half() for k, v in source.state_dict().items()}
    torch.save({"model": {**halved, "backbone.weight": torch.ones(2)}}, path)
    cfg.MODEL.ASSEMBLER.WEIGHTS = str(path)
    for name, value in build_pose_assembler(cfg).state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, source.state_dict()[name], atol=1e-3, rtol=1e-3)
    cfg.MODEL.ASSEMBLER.LEARNED.ROUNDS = 5
    with pytest.raises(ValueError, match=r"assembler\.pth does not fit MODEL\.ASSEMBLER"):
        build_pose_assembler(cfg)
    path.write_bytes(b"xx" * 100)
    with pytest.raises(ValueError, match="is no checkpoint: it is no torch file"):
        build_pose_assembler(cfg)
    cfg.MODEL.ASSEMBLER.WEIGHTS = "nothing.pth"
    with pytest.raises(FileNotFoundError, match=r"mpn_d2/weights/nothing\.pth not found"):
        build_pose_assembler(cfg)


def test_pose_scores_expect_the_quality_of_poses():
    """Trained on somebody who is there, and a box beside her that owns nothing."""
    sample = people((50, 60), (90, 60))
    sample["keypoints"][1] = 0.0
    model = assembler(pose_score=["oks"]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses([sample])["loss_assembly_pairs"].backward()
        optimizer.step()
    batch = model.eval().collate([given(sample)[0]], [sample["boxes"]])
    with torch.no_grad():
        rating = model.rate(batch)
    assert (rating.pair_scores[1] > 0).any(), "the idle box may claim something"
    assert rating.pose_oks[0] > 0.8 and rating.pose_oks[1] < 0.2
    poses = model.assemble(batch, rating)[0]
    assert poses.scores[0] == rating.pose_oks[0]
    for poses in model.inference(*random_batch()):
        assert ((poses.scores >= 0) & (poses.scores <= 1)).all()


def test_pairs_below_the_least_evidence_do_not_match():
    candidates, boxes = random_batch()
    whole = assembler()
    batch = whole.collate(candidates, boxes)
    with torch.no_grad():
        rating = whole.rate(batch)
    found = torch.cat([p.candidate_ids.flatten() for p in whole.assemble(batch, rating)])
    least = float(rating.pair_scores[rating.pair_scores > 0].median())
    strict = assembler(least_evidence=least)
    strict.load_state_dict(whole.state_dict())
    poses = strict.assemble(batch, rating)
    kept = torch.cat([p.candidate_ids.flatten() for p in poses])
    assert 0 < (kept >= 0).sum() < (found >= 0).sum()
    # What is left is matched as if the others had never been rated.
    rating.pair_scores = torch.where(rating.pair_scores >= least, rating.pair_scores, 0.0)
    again = torch.cat([p.candidate_ids.flatten() for p in whole.assemble(batch, rating)])
    assert torch.equal(kept, again)
