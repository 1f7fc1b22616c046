"""Degraded boxes and keypoints: amounts, what stays, and that chance comes from the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpn_d2.data.association_noise import (
    AssociationAugmentation,
    Noise,
    mirror_sample,
    noisy_boxes,
    noisy_keypoints,
)

K = 4
SIGMAS = (0.05, 0.1, 0.2, 0.4)


def crowd(people=300):
    keypoints = torch.full((people, K, 3), 2.0)
    keypoints[..., 0] = torch.arange(people)[:, None] * 1000.0 + 50
    keypoints[..., 1] = 100.0
    keypoints[::3, 1, 2] = 0.0
    corner = torch.stack([torch.arange(people) * 1000.0, torch.zeros(people)], dim=1)
    return keypoints, torch.cat([corner, corner + torch.tensor([100.0, 200.0])], dim=1)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_sides_of_boxes_move_by_their_share():
    _, boxes = crowd()
    moved = noisy_boxes(boxes, 0.1, rng()) - boxes
    for column, side in enumerate((100, 200, 100, 200)):
        assert moved[:, column].std().item() == pytest.approx(0.1 * side, rel=0.12)
        assert abs(moved[:, column].mean().item()) < 0.03 * side
    wild = noisy_boxes(boxes, 3.0, rng())
    assert (wild[:, 2:] > wild[:, :2]).all()
    assert torch.equal(noisy_boxes(boxes, 0.0, rng()), boxes)


def test_joints_move_by_their_sigma_and_the_size_of_the_person():
    keypoints, boxes = crowd()
    found = noisy_keypoints(keypoints, boxes, Noise(position=0.5), SIGMAS, rng())
    assert torch.equal(found[..., 2], keypoints[..., 2])
    for kind, sigma in enumerate(SIGMAS):
        spread = (found - keypoints)[:, kind, :2].std().item()
        assert spread == pytest.approx(0.5 * sigma * (0.53 * 100 * 200) ** 0.5, rel=0.1)


def test_missing_joints_lose_their_label_and_false_ones_follow_in_rows_of_their_own():
    keypoints, boxes = crowd()
    labelled = int((keypoints[..., 2] > 0).sum())
    found = noisy_keypoints(keypoints, boxes, Noise(missing=0.2), SIGMAS, rng())
    assert found.shape == keypoints.shape and torch.equal(found[..., :2], keypoints[..., :2])
    assert ((found[..., 2] > 0) <= (keypoints[..., 2] > 0)).all()
    assert 1 - int((found[..., 2] > 0).sum()) / labelled == pytest.approx(0.2, abs=0.04)
    more = noisy_keypoints(keypoints, boxes, Noise(false=0.2), SIGMAS, rng())
    assert torch.equal(more[:300], keypoints)
    added = more[300:]
    places = added[added[..., 2] > 0]
    assert len(places) / labelled == pytest.approx(0.2, abs=0.03)
    assert (places[:, 0] % 1000 <= 111).logical_or(places[:, 0] % 1000 >= 989).all()
    assert (places[:, 1] >= -20).all() and (places[:, 1] <= 220).all()
    nobody = noisy_keypoints(keypoints[:0], boxes[:0], Noise(0.1, 0.1, 0.5, 1.0), SIGMAS, rng())
    assert nobody.shape == (0, K, 3)


def augmentation(**options):
    options = {"noise": Noise(0.1, 0.3, 0.3, 1.0), "noise_prob": 1.0, "sigmas": SIGMAS, **options}
    return AssociationAugmentation(flip_prob=0.5, flip_indices=(1, 0, 2, 3), **options)


def test_a_person_sample_keeps_its_truth_and_gets_candidates():
    keypoints, boxes = crowd(5)
    sample = {"keypoints": keypoints, "owner": 2, "box": boxes[2]}
    found = augmentation(unannotated=1.0, crowd=1.0)(sample, rng(3))
    again = augmentation(unannotated=1.0, crowd=1.0)(sample, rng(3))
    assert torch.equal(found["candidates"], again["candidates"])
    truth = found["keypoints"]
    assert any(
        torch.equal(truth, s["keypoints"]) for s in (sample, mirror_sample(sample, (1, 0, 2, 3)))
    )
    assert found["box"].shape == (4,) and not torch.equal(found["box"], boxes[2])
    assert len(found["candidates"]) >= 5
    plain = AssociationAugmentation()(sample, rng())
    assert plain is sample


def test_scores_tell_something_of_who_is_false():
    keypoints, boxes = crowd()
    sample = {"image_id": 1, "keypoints": keypoints, "boxes": boxes}
    # The seed draws a fair share of false joints.
    found = augmentation(scored=1.0)(sample, rng(3))
    scores, given = found["candidate_scores"], found["candidates"][..., 2] > 0
    assert scores.shape == given.shape and scores.min() >= 0.1 and scores.max() <= 1
    true, false = scores[:300][given[:300]], scores[300:][given[300:]]
    # Means of the larger and of the smaller of two uniform numbers.
    assert float(true.mean()) == pytest.approx(0.7, abs=0.03)
    assert float(false.mean()) == pytest.approx(0.4, abs=0.1)
    again = augmentation(scored=1.0)(sample, rng(3))
    assert torch.equal(again["candidate_scores"], scores)
    assert "candidate_scores" not in augmentation(scored=0.0)(sample, rng(3))


def test_image_samples_get_boxes_that_own_nothing():
    keypoints, boxes = crowd(5)
    sample = {"image_id": 1, "keypoints": keypoints, "boxes": boxes}
    options = {"noise": Noise(), "flip_prob": 0.0, "flip_indices": ()}
    hidden = AssociationAugmentation(**options, unannotated=1.0)(sample, rng(1))
    assert ((hidden["keypoints"][..., 2] > 0).sum(dim=1) == 0).sum() == 1
    assert torch.equal(hidden["boxes"], boxes) and (keypoints[..., 2] > 0).sum() == 18
    crowded = AssociationAugmentation(**options, crowd=1.0)(sample, rng(1))
    assert len(crowded["boxes"]) == len(crowded["keypoints"]) == 6
    x1, y1, x2, y2 = crowded["boxes"][-1].tolist()
    inside = [b for b in boxes.tolist() if x1 <= b[0] and b[2] <= x2]
    assert len(inside) >= 2 and (y1, y2) == (0.0, 200.0)
    assert crowded["keypoints"][-1].abs().sum() == 0
    alone = {"image_id": 1, "keypoints": keypoints[:1], "boxes": boxes[:1]}
    found = AssociationAugmentation(**options, unannotated=1.0, crowd=1.0)(alone, rng())
    assert torch.equal(found["keypoints"], keypoints[:1])
    assert torch.equal(found["boxes"], boxes[:1])


def test_a_mirrored_image_mirrors_boxes_and_joints():
    keypoints = torch.tensor([[[12.0, 5, 2], [18, 6, 2]], [[40, 7, 2], [44, 8, 0]]])
    boxes = torch.tensor([[10.0, 0, 20, 9], [38.0, 1, 50, 9]])
    sample = {"keypoints": keypoints, "boxes": boxes}
    found = mirror_sample(sample, (1, 0))
    # About x = 30, the middle of both boxes together.
    assert found["boxes"].tolist() == [[40, 0, 50, 9], [10, 1, 22, 9]]
    assert found["keypoints"][0].tolist() == [[42, 6, 2], [48, 5, 2]]
    again = mirror_sample(found, (1, 0))
    assert torch.equal(again["keypoints"], keypoints) and torch.equal(again["boxes"], boxes)
