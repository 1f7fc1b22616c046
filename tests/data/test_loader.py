"""The stream of training images: the same for any workers, processes and place to start from."""

from __future__ import annotations

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from mpn_d2.data import PoseDatasetMapper, load_pose_dicts, register_pose_datasets
from mpn_d2.data.loader import (
    GROUPING_WINDOW,
    StreamOrder,
    build_image_loader,
    build_pose_train_loader,
    seeded,
    without_crowded_images,
)
from mpn_d2.structures.skeleton import get_skeleton


@pytest.fixture()
def cfg(paper_config) -> CfgNode:
    register_pose_datasets()
    options = ["INPUT.MIN_SIZE_TRAIN", "(48, 64)", "INPUT.MAX_SIZE_TRAIN", "96"]
    options += ["INPUT.FLIP_PROB", "0.5", "INPUT.AUGMENTATION", "resize"]
    options += ["SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0"]
    options += ["MODEL.TRAIN_PARTS", "['keypoint']", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"]
    return paper_config("quick/demo.yaml", options)


def _first(loader, count: int) -> list[list[dict]]:
    return list(itertools.islice(loader, count))


def _assert_same(batches: list[list[dict]], others: list[list[dict]]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert [x["image_id"] for x in batch] == [x["image_id"] for x in other]
        for a, b in zip(batch, other, strict=True):
            for key in ("image", "person_mask", "ignore_mask"):
                assert torch.equal(a[key], b[key])
            for field in ("gt_boxes", "gt_keypoints"):
                first, second = (x["instances"].get(field).tensor for x in (a, b))
                assert torch.equal(first, second)


def test_workers_and_resuming_change_nothing(cfg: CfgNode) -> None:
    whole = _first(build_pose_train_loader(cfg), 6)
    # Augmentations do vary: one photograph comes again in other sizes.
    assert len({tuple(x["image"].shape) for batch in whole for x in batch}) > 7
    for workers, start in ((0, 4), (1, 0), (2, 3)):
        cfg.DATALOADER.NUM_WORKERS = workers
        torch.manual_seed(workers + 5)
        _assert_same(_first(build_pose_train_loader(cfg, start), 6 - start), whole[start:])


@pytest.mark.parametrize("grouped", [False, True])
def test_two_processes_see_the_batches_of_one(cfg: CfgNode, monkeypatch, grouped: bool) -> None:
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    whole = _first(build_pose_train_loader(cfg, 15), 3)  # into the next window
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        parts.append(_first(build_pose_train_loader(cfg, 15), 3))
    together = [
        [x for pair in zip(*batches, strict=True) for x in pair]
        for batches in zip(*parts, strict=True)
    ]
    _assert_same(together, whole)
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(ValueError, match=r"batch of 3 images .* 2 processes.*IMS_PER_BATCH"):
        build_pose_train_loader(cfg)


def test_every_epoch_holds_every_image_in_another_order() -> None:
    order = StreamOrder(size=11, batch_size=3, seed=2)
    images = [order.image(p) for p in range(44)]
    epochs = [tuple(images[i : i + 11]) for i in range(0, 44, 11)]
    assert len(set(epochs)) == 4 and all(sorted(e) == list(range(11)) for e in epochs)
    assert images[:11] != [StreamOrder(size=11, batch_size=3, seed=3).image(p) for p in range(11)]
    steps = itertools.islice(order.batches(0), 40)
    assert list(itertools.chain.from_iterable(steps)) == list(range(120))


def test_grouped_batches_are_a_reordering_within_windows() -> None:
    wide = np.random.default_rng(0).random(37) < 0.6
    order = StreamOrder(size=37, batch_size=4, seed=5, groups=wide)
    batches = list(itertools.islice(order.batches(0), 3 * GROUPING_WINDOW))
    plain = order.batches(7)
    assert batches[7:] == list(itertools.islice(plain, 3 * GROUPING_WINDOW - 7))
    kinds = []
    for i in range(3):
        window = batches[i * GROUPING_WINDOW : (i + 1) * GROUPING_WINDOW]
        count = 4 * GROUPING_WINDOW
        assert sorted(itertools.chain.from_iterable(window)) == list(
            range(i * count, (i + 1) * count)
        )
        groups = [{bool(wide[order.image(p)]) for p in batch} for batch in window]
        assert sum(len(g) == 2 for g in groups) <= 1
        kinds.append([max(g) for g in groups])
    # Not all the portraits first.
    assert any(k != sorted(k) for k in kinds) and kinds[0] != kinds[1]


def test_generators_start_from_seed_and_position_and_are_given_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def inside(seed: int, position: int) -> tuple[float, float, float]:
        with seeded(seed, position):
            return draw()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    seen = [draw(), inside(0, 3), inside(0, 4), inside(1, 3), inside(0, 3), draw()]
    assert [seen[0], seen[-1]] == expected
    assert seen[1] == seen[4] and len({v for draws in seen[1:4] for v in draws}) == 9
    with pytest.raises(KeyError), seeded(0, 0):
        raise KeyError
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draw() == expected[0]


def test_loader_leaves_the_global_generator_alone(cfg: CfgNode) -> None:
    torch.manual_seed(4)
    _first(build_pose_train_loader(cfg), 1)
    after = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_stops_with_its_name(tmp_path, workers: int) -> None:
    register_pose_datasets()
    dicts = load_pose_dicts("coco_sample_two", is_train=True)
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    dicts[1]["file_name"] = str(tmp_path / "torn.jpg")
    mapper = PoseDatasetMapper(
        is_train=True,
        augmentations=[T.Resize((32, 32))],
        image_format="RGB",
        skeleton=get_skeleton("coco"),
        with_annotations=True,
    )
    order = StreamOrder(size=2, batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"torn\.jpg"):
        _first(build_image_loader(dicts, mapper, order, num_workers=workers), 1)


def test_dataset_travels_to_spawned_workers(cfg: CfgNode) -> None:
    dataset = build_pose_train_loader(cfg).dataset
    again = pickle.loads(pickle.dumps(dataset))
    _assert_same([[again[5]]], [[dataset[5]]])


def test_images_of_many_people_can_be_left_out(cfg) -> None:
    dicts = load_pose_dicts(cfg.DATASETS.TRAIN, is_train=True)
    counts = [
        sum(any(v > 0 for v in a.get("keypoints", [])[2::3]) for a in d["annotations"])
        for d in dicts
    ]
    middle = sorted(counts)[len(counts) // 2]
    assert min(counts) < max(counts)
    kept = without_crowded_images(dicts, middle)
    assert kept == [d for d, count in zip(dicts, counts) if count <= middle]
    assert without_crowded_images(dicts, 0) == dicts
    with pytest.raises(ValueError, match=r"INPUT\.MAX_PEOPLE_PER_IMAGE is -1"):
        without_crowded_images(dicts, -1)
    cfg.INPUT.MAX_PEOPLE_PER_IMAGE = middle
    ids = {x["image_id"] for batch in _first(build_pose_train_loader(cfg), 6) for x in batch}
    assert ids <= {d["image_id"] for d in kept}
