"""MultiPoseNet: parts that train and freeze, crowds, normaliser, sources at test time."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.modeling.meta_arch.common import mean_over_processes, mostly_inside
from mpn_d2.modeling.meta_arch.micro_batches import count_positive_anchors, weights_of_counts
from mpn_d2.modeling.meta_arch.multiposenet import PARTS

SMALL = ["MODEL.PRN.NODES", "8", "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128"]
SMALL += ["DATASETS.TRAIN", "('coco_sample_train',)", "MODEL.RESNETS.NORM", "BN"]


@pytest.fixture()
def sample():
    register_pose_datasets()
    return load_pose_dicts("coco_sample_train", is_train=True)


def build(paper_config, parts, options=()):
    cfg = paper_config(
        "MultiPoseNet/R_18_small.yaml", [*SMALL, "MODEL.TRAIN_PARTS", str(list(parts)), *options]
    )
    return build_model(cfg), cfg


def batch(cfg, dicts, is_train=True):
    mapper = PoseDatasetMapper(cfg, is_train=is_train)
    return [mapper(d) for d in dicts]


def test_parts_cover_all_parameters_once(paper_config):
    for shared in ("True", "False"):
        model, _ = build(paper_config, PARTS, ["MODEL.POSE_FPN.SHARED", shared])
        found = [
            id(p)
            for modules in model.part_modules().values()
            for module in modules
            for p in module.parameters()
        ]
        assert sorted(found) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("part", ["keypoint", "person"])
@pytest.mark.parametrize("shared", ["True", "False"])
def test_a_stage_moves_its_own_part_only_norm_statistics_included(
    paper_config, sample, part, shared
):
    model, cfg = build(paper_config, [part], ["MODEL.POSE_FPN.SHARED", shared])
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    with EventStorage():
        losses = model(batch(cfg, sample[:2]))
    assert {name.split("_")[1] for name in losses} == {part}
    sum(losses.values()).backward()
    optimizer.step()
    own = {id(t) for m in model.part_modules()[part] for t in (*m.parameters(), *m.buffers())}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(id(named[k]) in own for k in moved)
    if part == "keypoint":
        # In stage 1 the norm statistics of the trunk move, and every weight of the part.
        assert any(k.startswith("backbone.bottom_up") and "running_mean" in k for k in moved)
        assert "backbone.bottom_up.stem.conv1.weight" in moved
    else:
        assert not any(k.startswith("backbone.bottom_up") for k in moved)


def test_assembly_stage_needs_no_image(paper_config, sample):
    from mpn_d2.data.association import build_association_samples

    model, _ = build(paper_config, ["assembly"])
    model.train()
    frozen = [m for part in ("keypoint", "person") for m in model.part_modules()[part]]
    assert not any(m.training for top in frozen for m in top.modules())
    assert model.assembler.training
    losses = model(build_association_samples(sample, 3)[:4])
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.assembler.parameters())


def test_unknown_part_and_source_are_named(paper_config):
    with pytest.raises(ValueError, match="TRAIN_PARTS has 'boxes'"):
        build(paper_config, ["boxes"])
    with pytest.raises(ValueError, match=r"EVAL\.BOX_SOURCE is 'file'"):
        build(paper_config, PARTS, ["EVAL.BOX_SOURCE", "file"])


def test_anchors_mostly_in_a_crowd_are_ignored():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10], [30, 30, 40, 40], [5, 0, 16, 10]])
    crowds = torch.tensor([[0.0, 0.0, 10.0, 10.0], [12.0, 0.0, 13.0, 10.0]])
    # 100 %, exactly 50 %, 0 %, 5/11 in the one and 1/11 in the other.
    assert mostly_inside(anchors, crowds).tolist() == [True, False, False, False]
    assert mostly_inside(anchors, torch.zeros(0, 4)).tolist() == [False] * 4


def test_crowds_give_the_detector_no_gradient(paper_config, sample):
    model, cfg = build(paper_config, ["person"])
    model.train()
    (x,) = batch(cfg, sample[:1])
    x["instances"] = x["instances"][:0]
    height, width = x["image"].shape[1:]
    with EventStorage():
        x["crowd_boxes"] = torch.zeros(0, 4)
        background = model([x])["loss_person_cls"]
        x["crowd_boxes"] = torch.tensor([[-2e3, -2e3, width + 2e3, height + 2e3]])
        ignored = model([x])["loss_person_cls"]
    assert background > 0 and ignored == 0


def test_normaliser_has_no_memory(paper_config, sample):
    model, cfg = build(paper_config, ["person"])
    model.train()
    inputs = batch(cfg, sample[:2])
    with EventStorage():
        first, second = model(inputs), model(inputs)
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    assert mean_over_processes(7, model.device) == 7
    assert mean_over_processes(0, model.device) == 1


@pytest.mark.parametrize("shares", [(0, 0), (1, 0), (0, 3), (5, 2)])
def test_normaliser_of_processes_is_that_of_the_whole_batch(monkeypatch, shares):
    cpu = torch.device("cpu")
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.fill_(sum(shares)))
    # DDP's mean over two processes of sums 10 and 4.
    mean = sum(total / mean_over_processes(n, cpu) for total, n in zip((10, 4), shares)) / 2
    assert mean == pytest.approx(14 / max(sum(shares), 1))


@pytest.mark.parametrize("config", ["R_18_small", "R_50_dilated"])
def test_positives_are_counted_without_features(paper_config, sample, config):
    """Images of several odd sizes, padded together; the last pyramid levels round up."""
    options = [*SMALL, "MODEL.TRAIN_PARTS", "['person']", "MODEL.RESNETS.NORM", "FrozenBN"]
    options += ["MODEL.WEIGHTS", ""]
    cfg = paper_config(f"MultiPoseNet/{config}.yaml", options)
    model = build_model(cfg).train()
    inputs = batch(cfg, sample[:3])
    assert len({tuple(x["image"].shape) for x in inputs}) > 1
    for part in (inputs, inputs[1:]):
        with EventStorage() as storage:
            model(part)
            logged = storage.latest()["num_pos_anchors"][0]
        found = count_positive_anchors(model, part)
        assert found > 0 and found == pytest.approx(logged * len(part))


def test_micro_batches_weigh_by_what_their_losses_divide_by(monkeypatch):
    cpu = torch.device("cpu")
    assert weights_of_counts([3, 1], cpu) == [0.75, 0.25]
    # A part with nothing divides by 1.
    assert weights_of_counts([0, 4], cpu) == [0.25, 1.0]
    assert weights_of_counts([0, 0], cpu) == [1.0, 1.0]
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(torch.tensor([1, 3])))
    assert weights_of_counts([3, 1], cpu) == [0.5, 0.5]


def test_validation_keeps_no_graph(paper_config, sample):
    """Inside no_grad the trunk of a part that trains works without gradients too."""
    model, cfg = build(paper_config, ["keypoint"])
    seen = []
    model.backbone.bottom_up.register_forward_hook(lambda m, x, out: seen.append(out["res5"]))
    with EventStorage():
        model.train()(batch(cfg, sample[:1]))
        with torch.no_grad():
            model(batch(cfg, sample[:1]))
    assert [x.requires_grad for x in seen] == [True, False]


def test_person_losses_are_means_over_positive_anchors(paper_config, sample):
    # Twice the same image: twice the sums, twice the positives, the same loss.
    model, cfg = build(paper_config, ["person"])
    model.train()
    inputs = batch(cfg, sample[:1])
    with EventStorage():
        once, twice = model(inputs), model(inputs * 2)
    for name in once:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(480, 480), (333, 491)])
def test_shapes_of_the_paper(paper_config, size):
    """Spec section 1 on ResNet-50, at 480 x 480 and at an odd size."""
    cfg = paper_config("MultiPoseNet/R_50.yaml", ["MODEL.PRN.NODES", "4"])
    model = build_model(cfg).eval()
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}])
        features = model.backbone(images.tensor)
        maps = model.keypoint_head.layers(features).maps
        logits, deltas = model.head([features[name] for name in model.head_in_features])
    padded = tuple(-(-side // 32) * 32 for side in size)
    assert tuple(images.tensor.shape[-2:]) == padded
    for name, feature in features.items():
        stride = 2 ** int(name[1:])
        assert feature.shape == (1, 256, *(-(-side // stride) for side in padded)), name
    assert maps.shape == (1, 18, padded[0] // 4, padded[1] // 4)
    assert [x.shape[1] for x in logits] == [9] * 5 and [x.shape[1] for x in deltas] == [36] * 5
    result = model([{"image": image, "height": size[0], "width": size[1]}])[0]
    assert result["sem_seg"].shape == (2, *size)


def test_detector_parameter_counts_of_the_paper(paper_config):
    head = build_model(paper_config("MultiPoseNet/R_50.yaml", ["MODEL.PRN.NODES", "4"])).head

    def count(*modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    assert count(head.cls_subnet, head.cls_score) == 2_381_065
    assert count(head.bbox_subnet, head.bbox_pred) == 2_443_300


def test_predicted_boxes_enter_the_assembly_inside_the_image(paper_config, sample, monkeypatch):
    options = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"]
    model, cfg = build(paper_config, PARTS, options)
    seen = []
    real = model.assembler.inference

    def inference(candidates, boxes, *args):
        seen.extend(boxes)
        return real(candidates, boxes, *args)

    monkeypatch.setattr(model.assembler, "inference", inference)
    (x,) = batch(cfg, sample[:1], is_train=False)
    model.eval()([x])
    height, width = x["image"].shape[1:]
    assert len(seen[0]) == 20
    assert (seen[0] >= 0).all() and (seen[0] <= torch.tensor([width, height] * 2)).all()


def test_true_keypoints_and_boxes_as_sources(paper_config, sample):
    options = ["EVAL.KEYPOINT_SOURCE", "gt", "EVAL.BOX_SOURCE", "gt"]
    options += ["MODEL.ASSEMBLER.EVIDENCE", "identity"]
    model, cfg = build(paper_config, PARTS, options)
    model.eval()
    # Two people standing apart: identity evidence assigns them rightly.
    record = next(d for d in sample if d["image_id"] == 442450)
    (x,) = batch(cfg, [record], is_train=False)
    found = model([x])[0]["instances"]
    people = record["annotations"]
    assert len(found) == len(people) == 2
    for i, person in enumerate(people):
        box = torch.tensor(person["bbox"])
        want = torch.cat([box[:2], box[:2] + box[2:]])
        torch.testing.assert_close(found.pred_boxes.tensor[i], want, atol=0.6, rtol=0)
        keypoints = torch.tensor(person["keypoints"]).view(-1, 3)
        labelled = keypoints[:, 2] > 0
        assert (found.pred_keypoints[i, labelled, 2] == 1).float().mean() > 0.7
        assigned = labelled & (found.pred_keypoints[i, :, 2] == 1)
        # The image's own pixels: COCO's index plus a half (detectron2's loader adds it).
        torch.testing.assert_close(
            found.pred_keypoints[i, assigned, :2], keypoints[assigned, :2], atol=0.01, rtol=0
        )


def test_boxes_below_the_threshold_keep_an_empty_pose(paper_config, sample):
    options = ["EVAL.KEYPOINT_SOURCE", "gt", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    options += ["MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.99", "TEST.DETECTIONS_PER_IMAGE", "7"]
    model, cfg = build(paper_config, PARTS, options)
    found = model.eval()(batch(cfg, sample[:1], is_train=False))[0]["instances"]
    assert len(found) > 0
    assert found.pred_keypoints.abs().max() == 0 and found.pose_scores.max() == 0


def test_input_of_another_mapper_is_named(paper_config):
    model, _ = build(paper_config, PARTS)
    with pytest.raises(ValueError, match="no 'instances'.*PoseDatasetMapper"):
        model.train()([{"image": torch.zeros(3, 64, 64)}])
