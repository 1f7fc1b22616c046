"""The pair network and its loss against loops written out here."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.modeling.assembly.pair_losses import ownership_loss, pose_quality
from mpn_d2.modeling.assembly.pair_network import PairLogits, PairNetwork, Pairs, box_features

K = 3


def network(**options):
    torch.manual_seed(1)
    options = {"width": 8, "message": 4, "box_width": 6, "rounds": 2, **options}
    found = PairNetwork(num_keypoints=K, **options).eval()
    with torch.no_grad():
        found.no_candidate.normal_()
        found.no_box.normal_()
    return found


def scene(seed=0, boxes=3, candidates=7, share=0.6):
    """Random pairs of one image, every box with every candidate by chance."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, K, (candidates,), generator=generator)
    chosen = torch.rand(boxes, candidates, generator=generator) < share
    box, candidate = chosen.nonzero().unbind(1)
    kind = kinds[candidate]
    return Pairs(
        box=box,
        slot=box * K + kind,
        candidate=candidate,
        kind=kind,
        place=torch.rand(len(box), 2, generator=generator),
        score=torch.rand(candidates, generator=generator)[candidate],
        box_features=torch.randn(boxes, 5, generator=generator),
        candidate_kind=kinds,
    )


def pairs_of(pairs, key, value):
    return [e for e in range(len(pairs.box)) if int(getattr(pairs, key)[e]) == value]


def slow_shares(logits, pairs):
    of_slot, of_candidate = [], []
    for e in range(len(pairs.box)):
        slot, candidate = int(pairs.slot[e]), int(pairs.candidate[e])
        rivals = [logits.pairs[i].exp() for i in pairs_of(pairs, "slot", slot)]
        total = sum(rivals) + logits.no_candidate[slot].exp()
        of_slot.append(logits.pairs[e].exp() / total)
        rivals = [logits.pairs[i].exp() for i in pairs_of(pairs, "candidate", candidate)]
        total = sum(rivals) + logits.no_box[candidate].exp()
        of_candidate.append(logits.pairs[e].exp() / total)
    return of_slot, of_candidate


def slow_round(step, features, logits, pairs):
    """`PairRound.forward`, one pair, slot and box at a time."""
    of_slot, of_candidate = slow_shares(logits, pairs)
    weight = [math.sqrt(a * b) for a, b in zip(of_slot, of_candidate)]
    normed = [step.norm(row) for row in features]
    expected, sums = {}, {}
    for b in range(len(pairs.box_features)):
        row = []
        for kind in range(K):
            members = pairs_of(pairs, "slot", b * K + kind)
            told = sum(
                (weight[e] * step.summary.to_slot(normed[e]) for e in members), torch.zeros(4)
            )
            presence = sum(weight[e] for e in members)
            place = sum((weight[e] * pairs.place[e] for e in members), torch.zeros(2))
            sums[b * K + kind] = told
            row += [told, place / (presence + 0.1), torch.tensor([float(presence)])]
        spoken = step.from_box(step.summary.box(torch.cat([*row, pairs.box_features[b]])))
        for kind in range(K):
            expected[b * K + kind] = spoken[kind * 4 : kind * 4 + 4]
    result = []
    for e in range(len(pairs.box)):
        slot, candidate = int(pairs.slot[e]), int(pairs.candidate[e])
        wanted = sum(
            of_candidate[i] * step.to_candidate(normed[i])
            for i in pairs_of(pairs, "candidate", candidate)
        )
        offset = pairs.place[e] - expected[slot][:2]
        shares = torch.stack([of_slot[e], of_candidate[e], torch.tensor(weight[e])])
        heard = step.hear_self(torch.cat([normed[e], offset, offset**2, shares]))
        heard = heard + step.hear_slot(torch.cat([sums[slot], expected[slot]]))
        result.append(features[e] + step.conclude((heard + step.hear_candidate(wanted)).relu()))
    return torch.stack(result)


@torch.no_grad()
def test_equals_slow_rounds():
    model, pairs = network(), scene()
    found = model(pairs)
    assert len(found.rounds) == 2
    features, logits = [], found.first
    for e, row in enumerate(model._inputs(pairs)):
        seen = model.see_pair(row) + model.see_box(pairs.box_features[pairs.box[e]])
        features.append(model.conclude((seen + model.kind.weight[pairs.kind[e]]).relu()))
    features = torch.stack(features)
    for number, step in enumerate(model.rounds, start=1):
        wanted = torch.stack([model.readers[number - 1](row)[0] for row in features])
        torch.testing.assert_close(logits.pairs, wanted, atol=1e-5, rtol=1e-5)
        features = slow_round(step, features, logits, pairs)
        logits = found.rounds[number - 1]
    torch.testing.assert_close(found.features, features, atol=1e-5, rtol=1e-5)
    assert found.last is logits


@torch.no_grad()
def test_unlikely_pairs_are_dropped_and_come_last():
    """The rest goes on exactly as if the dropped pairs were not there."""
    pairs = scene()
    first = network().forward(pairs).first.probabilities(pairs)
    least = float(first.sort().values[4:6].mean())
    model = network(least=least)
    found = model(pairs)
    assert found.kept.tolist() == (first >= least).nonzero()[:, 0].tolist()
    assert 0 < len(found.kept) < len(first)
    features = model._first_features(pairs)[found.kept]
    logits = PairLogits(found.first.pairs[found.kept], found.first.no_candidate, found.first.no_box)
    for number, step in enumerate(model.rounds, start=1):
        features = slow_round(step, features, logits, found.pairs)
        logits = model._read(number, features, found.pairs)
    torch.testing.assert_close(found.last.pairs, logits.pairs, atol=1e-5, rtol=1e-5)
    chances = found.probabilities()
    assert chances[found.kept].tolist() == found.last.probabilities(found.pairs).tolist()
    dropped = sorted(set(range(len(first))) - set(found.kept.tolist()))
    torch.testing.assert_close(chances[dropped], 0.01 * first[dropped])


@torch.no_grad()
def test_inputs_tell_place_score_and_how_many_compete():
    model, pairs = network(), scene()
    inputs = model._inputs(pairs)
    for e in (0, len(pairs.box) - 1):
        x, y = pairs.place[e].tolist()
        waves = [math.pi * 2**octave / 2 for octave in range(4)]
        row = [x, y]
        for wave in (math.sin, math.cos):
            row += [wave(v * scale) for v in (x, y) for scale in waves]
        rivals = len(pairs_of(pairs, "candidate", int(pairs.candidate[e])))
        choices = len(pairs_of(pairs, "slot", int(pairs.slot[e])))
        row += [pairs.score[e].item(), math.log(rivals), math.log(choices)]
        assert inputs[e].tolist() == pytest.approx(row, abs=1e-5)


@torch.no_grad()
def test_probabilities_are_shares_of_slot_and_candidate():
    model, pairs = network(), scene(2)
    logits = model(pairs).last
    of_slot, of_candidate = slow_shares(logits, pairs)
    wanted = [math.sqrt(a * b) for a, b in zip(of_slot, of_candidate)]
    assert logits.probabilities(pairs).tolist() == pytest.approx(wanted, rel=1e-4)


@torch.no_grad()
def test_logits_are_bounded():
    model, pairs = network(), scene()
    model.readers[-1][-1].bias.fill_(1e4)
    chances = model(pairs).probabilities()
    assert torch.isfinite(chances).all() and chances.max() <= 1


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_slots_and_candidates():
    model, pairs = network(), scene(3)
    logits = model(pairs).last
    # One owner a candidate at most, one candidate a slot at most.
    owned = torch.zeros(len(pairs.box), dtype=torch.bool)
    for e in range(0, len(owned), 2):
        same = (pairs.slot == pairs.slot[e]) | (pairs.candidate == pairs.candidate[e])
        owned[e] = not owned[same].any()
    of_slot, of_candidate = slow_shares(logits, pairs)
    total = 0.0
    for shares, key in ((of_slot, "slot"), (of_candidate, "candidate")):
        for segment in sorted(set(getattr(pairs, key).tolist())):
            members = pairs_of(pairs, key, segment)
            right = [e for e in members if owned[e]]
            rest = 1 - sum(float(shares[e]) for e in members)
            total -= math.log(float(shares[right[0]]) if right else rest)
    assert ownership_loss(logits, pairs, owned).item() == pytest.approx(total / 3, rel=1e-4)


def test_features_of_boxes():
    boxes = torch.tensor([[0.0, 0, 100, 50], [50, 0, 150, 50], [500, 0, 510, 10], [0, 0, 100, 50]])
    found = box_features(boxes, torch.tensor([0, 0, 0, 1]))
    third = 1 / 3
    assert found[0].tolist() == pytest.approx(
        [math.log(2), math.log(5000) / 2 - 4.5, 0.5, math.log(2), third], abs=1e-5
    )
    # Alone in its neighbourhood, or in its image.
    assert found[2, 2:].tolist() == found[3, 2:].tolist() == [0, 0, 0]
    flat = box_features(torch.tensor([[5.0, 5, 5, 9]]), torch.tensor([0]))
    assert torch.isfinite(flat).all()
    assert box_features(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).shape == (0, 5)


def test_gradients_reach_everything_and_no_pairs_are_no_error():
    model, pairs = network().train(), scene(1)
    owned = torch.arange(len(pairs.box)) % 3 == 0
    found = model(pairs)
    loss = ownership_loss(found.first, pairs, owned)
    loss = loss + sum(ownership_loss(logits, pairs, owned) for logits in found.rounds)
    (loss + sum(x.square().sum() for x in model.people(found))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(p.grad.abs().sum() > 0 for p in model.rounds.parameters())
    empty = scene(candidates=4, share=0.0)
    found = model(empty)
    places, quality = model.people(found)
    assert places.shape == (3, K, 2) and quality.shape == (3,)
    assert found.probabilities().shape == found.last.pairs.shape == (0,)
    loss = ownership_loss(found.last, empty, torch.zeros(0, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0


def test_pose_quality_is_the_share_of_thresholds_of_the_likeliest_pose():
    """Against a loop: likeliest candidate of each slot, COCO's formula, ten thresholds."""
    pairs = scene(3, boxes=4, candidates=12, share=0.5)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(12, 2, generator=generator) * 20
    truth = torch.cat([torch.rand(4, K, 2, generator=generator) * 20, torch.ones(4, K, 1)], dim=2)
    truth[0, 1, 2] = 0.0
    truth[3, :, 2] = 0.0
    chance = torch.rand(len(pairs.box), generator=generator)
    areas, sigmas = torch.tensor([900.0, 400, 2500, 900]), torch.tensor([0.1, 0.2, 0.3])
    expected = []
    for box in range(4):
        similarities = []
        for kind in range(K):
            if truth[box, kind, 2] == 0:
                continue
            mine = pairs_of(pairs, "slot", box * K + kind)
            if not mine:
                similarities.append(0.0)
                continue
            best = max(mine, key=lambda e: float(chance[e]))
            gap = points[int(pairs.candidate[best])] - truth[box, kind, :2]
            spread = 2 * float(areas[box]) * (2 * float(sigmas[kind])) ** 2
            similarities.append(math.exp(-float(gap.square().sum()) / spread))
        oks = sum(similarities) / max(len(similarities), 1)
        expected.append(sum(oks >= 0.5 + 0.05 * i for i in range(10)) / 10)
    found = pose_quality(chance, points[pairs.candidate], pairs, truth, areas, sigmas)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 < sum(expected) < 3 and expected[3] == 0
