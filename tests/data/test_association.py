"""Training people from annotations: who counts, in which order, resumed where it stopped."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from mpn_d2.data import association
from mpn_d2.data.association import (
    SampleOrder,
    build_association_images,
    build_association_loader,
    build_association_samples,
)
from mpn_d2.data.association_noise import AssociationAugmentation, Noise, mirror_sample
from mpn_d2.structures.skeleton import get_skeleton


def person(labelled, box=(10.0, 20.0, 30.0, 40.0), joints=5, **extra):
    keypoints = []
    for k in range(joints):
        keypoints += [k + 0.5, k + 1.5, 2] if k < labelled else [0.5, 0.5, 0]
    return {"keypoints": keypoints, "bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, **extra}


def records():
    return [
        {"image_id": 7, "annotations": [person(3), person(0), person(2), person(4, iscrowd=1)]},
        {"image_id": 8, "annotations": [person(0)]},
        {"image_id": 9, "annotations": [person(5, (0, 0, 2, 3)), person(5, (0, 0, 5, 5))]},
        {"image_id": 10, "annotations": []},
    ]


def test_who_is_a_sample_and_who_is_only_there():
    samples = build_association_samples(records(), min_keypoints=3)
    assert [s["image_id"] for s in samples] == [7, 9, 9]
    first = samples[0]
    # Three people of image 7 have joints; the one with two and the crowd are no samples.
    assert first["keypoints"].shape == (3, 5, 3) and first["keypoints"].dtype == torch.float32
    assert first["owner"] == 0
    assert first["box"].tolist() == [10.0, 20.0, 40.0, 60.0]
    assert first["keypoints"][0, 1].tolist() == [1.5, 2.5, 2.0]
    assert [s["owner"] for s in samples] == [0, 0, 1]


def test_unequal_keypoint_lists_name_the_image():
    broken = [{"image_id": 31, "annotations": [person(3), person(3, joints=6)]}]
    with pytest.raises(ValueError, match="image 31"):
        build_association_samples(broken, 1)


def test_other_number_of_keypoints_than_the_skeletons():
    dicts = records()
    assert len(build_association_samples(dicts, 3, num_keypoints=5)) == 3
    with pytest.raises(ValueError, match=r"image 7: .* 5 keypoints, expected 14.*MODEL\.SKELETON"):
        build_association_samples(dicts, 3, num_keypoints=14)


def test_people_without_keypoints_are_no_samples():
    nobody = [person(3, keypoints=None), person(3, keypoints=[]), person(3)]
    (sample,) = build_association_samples([{"image_id": 1, "annotations": nobody}], 1)
    assert sample["keypoints"].shape == (1, 5, 3)


def take_from(order, position, count):
    return list(itertools.islice(order.stream(position), count))


def test_image_samples_hold_everybody_once():
    first, second = build_association_images(records())
    assert (first["image_id"], second["image_id"]) == (7, 9)
    # Somebody without keypoints keeps her row and box; so does the crowd, whose joints go.
    assert (first["keypoints"][..., 2] > 0).sum(dim=1).tolist() == [3, 0, 2, 0]
    assert first["boxes"].tolist() == [[10.0, 20.0, 40.0, 60.0]] * 4
    assert second["boxes"].tolist() == [[0, 0, 2, 3], [0, 0, 5, 5]]
    with pytest.raises(ValueError, match=r"image 7: .* 5 keypoints, expected 14"):
        build_association_images(records(), num_keypoints=14)


def test_sorted_puts_many_keypoints_and_large_boxes_first_in_every_epoch():
    samples = build_association_samples(records(), min_keypoints=2)
    ordered = take_from(SampleOrder(samples, "sorted", seed=3), 0, 4)
    labelled = [int((s["keypoints"][s["owner"], :, 2] > 0).sum()) for s in ordered]
    assert labelled == [5, 5, 3, 2]
    assert ordered[0]["box"].tolist() == [0.0, 0.0, 5.0, 5.0]
    again = take_from(SampleOrder(samples, "sorted", seed=4), 8, 4)
    assert [id(s) for s in ordered] == [id(s) for s in again]


def test_none_shuffles_by_seed_and_epoch():
    samples = [{"number": i} for i in range(50)]

    def numbers(seed, epoch):
        return [s["number"] for s in take_from(SampleOrder(samples, "none", seed), 50 * epoch, 50)]

    assert sorted(numbers(1, 0)) == list(range(50))
    assert numbers(1, 0) == numbers(1, 0)
    assert len({tuple(numbers(s, e)) for s in (1, 2) for e in (0, 1)}) == 4


def take(loader, number):
    return [[s["number"] for s in batch] for batch in itertools.islice(loader, number)]


def numbered(count=7):
    keypoints = torch.full((1, 2, 3), 2.0)
    return [
        {"number": i, "keypoints": keypoints, "owner": 0, "box": torch.tensor([0.0, 0, 9 - i, 9])}
        for i in range(count)
    ]


def with_joints(counts):
    samples = numbered(len(counts))
    for sample, count in zip(samples, counts):
        sample["keypoints"] = torch.zeros(1, 9, 3)
        sample["keypoints"][0, :count, 2] = 2.0
    return samples


def test_growing_lets_people_with_more_joints_join_step_by_step():
    samples = with_joints([3, 4, 4, 5, 6, 6, 2])
    loader = build_association_loader(samples, 2, "growing", 1, growing_iters=4)
    batches = take(loader, 19)
    flat = list(itertools.chain(*batches))
    few = [0, 1, 2, 6]
    # 8 samples of people with at most 4 joints, two epochs; 8 with at most 5; then everybody.
    assert sorted(flat[:4]) == sorted(flat[4:8]) == few
    assert sorted(flat[8:13]) == [*few[:3], 3, 6] and set(flat[13:16]) < {0, 1, 2, 3, 6}
    assert sorted(flat[16:23]) == sorted(flat[23:30]) == list(range(7))
    for start in (1, 3, 4, 6, 8, 11):
        rest = build_association_loader(samples, 2, "growing", 1, start, growing_iters=4)
        assert take(rest, 19 - start) == batches[start:]
    # Nobody with as few as four: the phases begin with the fewest there are.
    many = build_association_loader(with_joints([7, 9]), 1, "growing", 1, growing_iters=2)
    assert take(many, 4)[:2] == [[0], [0]]


@pytest.mark.parametrize("curriculum", ["sorted", "none"])
@pytest.mark.parametrize("start", [1, 3, 8])
def test_stream_resumes_exactly(curriculum, start):
    whole = take(build_association_loader(numbered(), 3, curriculum, 5), 14)
    rest = take(build_association_loader(numbered(), 3, curriculum, 5, start), 14 - start)
    assert rest == whole[start:]
    assert all(len(batch) == 3 for batch in whole)
    flat = list(itertools.chain(*whole))
    for epoch in range(6):  # each epoch shows everybody once, across batch borders
        assert sorted(flat[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    if curriculum == "sorted":
        assert flat[:7] == flat[7:14] == list(range(7))


def test_stream_of_images_resumes_exactly_with_all_that_is_drawn():
    """Noise, scores, idle boxes and mirroring of an image depend on its place in the stream."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(5):
        corner = torch.rand(4, 2, generator=generator) * 100
        boxes = torch.cat([corner, corner + 50], dim=1)
        keypoints = torch.cat([boxes[:, None, :2] + 20, torch.full((4, 1, 1), 2.0)], dim=2)
        keypoints = keypoints.repeat(1, len(get_skeleton("coco").sigmas), 1)
        samples.append({"image_id": number, "keypoints": keypoints, "boxes": boxes})
    augment = AssociationAugmentation(
        flip_prob=0.5,
        flip_indices=tuple(get_skeleton("coco").flip_indices),
        noise=Noise(0.1, 0.2, 0.3, 1.0),
        noise_prob=0.7,
        sigmas=tuple(get_skeleton("coco").sigmas),
        unannotated=0.5,
        crowd=0.5,
        scored=0.5,
    )

    def batches(start, count):
        loader = build_association_loader(samples, 3, "none", 4, start, augment)
        return list(itertools.islice(iter(loader), count))

    whole = batches(0, 8)
    assert any("candidate_scores" in sample for batch in whole for sample in batch)
    for start in (1, 5):
        for batch, again in zip(whole[start:], batches(start, 8 - start), strict=True):
            for sample, other in zip(batch, again, strict=True):
                assert sample.keys() == other.keys()
                for key, value in sample.items():
                    same = value == other[key]
                    assert bool(same.all() if isinstance(same, torch.Tensor) else same), key


def test_a_batch_larger_than_the_set():
    assert take(build_association_loader(numbered(2), 5, "sorted", 0), 1) == [[0, 1, 0, 1, 0]]


def test_processes_share_each_batch(monkeypatch):
    whole = take(build_association_loader(numbered(), 4, "none", 2), 5)
    monkeypatch.setattr(association.comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(association.comm, "get_rank", lambda rank=rank: rank)
        parts.append(take(build_association_loader(numbered(), 4, "none", 2), 5))
    for batch, first, second in zip(whole, *parts):
        assert len(first) == len(second) == 2
        assert sorted(first + second) == sorted(batch)
    with pytest.raises(ValueError, match="does not divide"):
        build_association_loader(numbered(), 3, "none", 2)


def test_a_mirrored_person():
    """Left and right joints change places, about the middle of the box; the box stays."""
    points = [[[2.0, 3, 2], [7, 4, 1], [0.5, 0.5, 0]], [[9.0, 9, 2], [0.5, 0.5, 0], [1, 8, 2]]]
    sample = {"keypoints": torch.tensor(points), "owner": 0, "box": torch.tensor([1.0, 2, 8, 9])}
    mirrored = mirror_sample(sample, (1, 0, 2))
    assert mirrored["box"] is sample["box"] and mirrored["owner"] == 0
    assert mirrored["keypoints"][0, :2].tolist() == [[2, 4, 1], [7, 3, 2]]
    assert mirrored["keypoints"][1, [0, 2]].tolist() == [[8.5, 0.5, 0], [8, 8, 2]]
    assert sample["keypoints"].tolist() == points
    again = mirror_sample(mirrored, (1, 0, 2))
    assert torch.equal(again["keypoints"], sample["keypoints"])


def test_mirror_images_are_drawn_by_position_alone():
    def sides(start, count, probability):
        augment = AssociationAugmentation(flip_prob=probability, flip_indices=(1, 0))
        loader = build_association_loader(numbered(), 4, "none", 2, start, augment)
        batches = itertools.islice(loader, count)
        # In the box's right half or, as drawn, at x = 2.
        return [[float(s["keypoints"][0, 0, 0]) == 2 for s in batch] for batch in batches]

    whole = sides(0, 40, 0.3)
    assert sides(11, 29, 0.3) == whole[11:]
    plain = sum(map(sum, whole)) / 160
    assert 0.6 < plain < 0.8 + 1 / 7  # a box of width 4 has its middle there
    assert all(map(all, sides(0, 5, 0.0)))


def test_nobody_to_train_on_and_unknown_curriculum():
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN.*MODEL\.PRN\.MIN_KEYPOINTS"):
        build_association_loader([], 3, "sorted", 0)
    with pytest.raises(ValueError, match="CURRICULUM"):
        SampleOrder([], "hard", 0)


def test_bundled_sample(sample_dir):
    path = sample_dir / "annotations" / "person_keypoints_train.json"
    samples = build_association_samples(load_coco_json(str(path), "", "mpn_test_sample"), 3)
    with open(path) as file:
        annotations = json.load(file)["annotations"]
    wanted = [a for a in annotations if a["num_keypoints"] >= 3 and not a["iscrowd"]]
    assert len(samples) == len(wanted)
    boxes = sorted((round(x), round(y)) for x, y, _, _ in (s["box"].tolist() for s in samples))
    assert boxes == sorted((round(a["bbox"][0]), round(a["bbox"][1])) for a in wanted)
    for sample in samples:
        x, y, v = sample["keypoints"][sample["owner"]].unbind(-1)
        assert (v > 0).sum() >= 3 and (x[v > 0] % 1 == 0.5).all() and (y[v > 0] % 1 == 0.5).all()
