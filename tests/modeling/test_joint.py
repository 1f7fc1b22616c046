"""Joint training: which loss reaches which weights at each level, samples from predictions."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage

from mpn_d2.codecs.person_grid import crop_heatmaps, encode_label
from mpn_d2.modeling.meta_arch.joint import match_boxes, samples_from_annotations
from mpn_d2.modeling.meta_arch.multiposenet import PARTS
from mpn_d2.structures.outputs import Candidates, HeatmapOutputs

K = 17
HEIGHT, WIDTH = 64, 96
# Every anchor comes out as a box, whatever an untrained head thinks of it.
OPTIONS = ["MODEL.PRN.NODES", "8", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
OPTIONS += ["MODEL.RETINANET.NMS_THRESH_TEST", "1.0", "TEST.DETECTIONS_PER_IMAGE", "3000"]


def build(paper_config, level, mode="heatmap", parts=PARTS, options=()):
    torch.manual_seed(0)
    chosen = ["MODEL.JOINT_LEVEL", str(level), "MODEL.PRN.INPUT_MODE", mode]
    chosen += ["MODEL.TRAIN_PARTS", str(list(parts))]
    cfg = paper_config("MultiPoseNet/R_18_small.yaml", [*OPTIONS, *chosen, *options])
    return build_model(cfg).train()


def people(boxes, labelled=K) -> Instances:
    generator = torch.Generator().manual_seed(len(boxes))
    instances = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    points = torch.rand(len(boxes), K, 2, generator=generator)
    points = boxes[:, None, :2] + points * (boxes[:, 2:] - boxes[:, :2])[:, None]
    visible = torch.zeros(len(boxes), K, 1)
    visible[:, :labelled] = 2.0
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    instances.gt_keypoints = Keypoints(torch.cat([points, visible], dim=2))
    return instances


def batch(*boxes):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 255, (3, HEIGHT, WIDTH), generator=generator).byte(),
            "instances": people(b),
            "crowd_boxes": torch.zeros(0, 4),
            "person_mask": torch.zeros(HEIGHT // 4, WIDTH // 4, dtype=torch.uint8),
            "ignore_mask": torch.zeros(HEIGHT // 4, WIDTH // 4, dtype=torch.uint8),
        }
        for b in boxes
    ]


PEOPLE = ([[10.0, 10.0, 45.0, 52.0]], [[20.0, 4.0, 60.0, 50.0], [60.0, 20.0, 92.0, 60.0]])


def losses_of(model, inputs):
    with EventStorage():
        return model(inputs)


def reached(model, loss) -> set[str]:
    """Blocks of the network that a loss gives a gradient other than 0."""
    backbone = model.backbone
    blocks = {
        "trunk": [backbone.bottom_up],
        "keypoint pyramid": backbone.keypoint_modules(),
        "keypoint head": [model.keypoint_head],
        "person pyramid": backbone.person_modules(),
        "person head": [model.head],
        "assembly": [model.assembler],
    }
    parameters = {
        name: [p for module in modules for p in module.parameters()]
        for name, modules in blocks.items()
    }
    flat = [p for group in parameters.values() for p in group]
    gradients = torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    by_id = {id(p): g for p, g in zip(flat, gradients, strict=True)}
    return {
        name
        for name, group in parameters.items()
        if any(by_id[id(p)] is not None and by_id[id(p)].abs().sum() > 0 for p in group)
    }


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_each_loss_reaches_what_the_table_says(paper_config, level, shared):
    model = build(paper_config, level, options=["MODEL.POSE_FPN.SHARED", str(shared)])
    losses = losses_of(model, batch(*PEOPLE))
    found = {
        part: reached(model, sum(v for k, v in losses.items() if k.split("_")[1] == part))
        for part in PARTS
    }
    keypoint = {"trunk", "keypoint pyramid", "keypoint head"}
    assert found["keypoint"] == keypoint
    own = {"person pyramid", "person head"}
    above = {"trunk", "keypoint pyramid"} if shared else {"trunk"}
    assert found["person"] == (own | above if level == 3 else own)
    assembly = {0: set(), 1: set(), 2: keypoint - {"trunk"}, 3: keypoint}[level]
    assert found["assembly"] == {"assembly"} | assembly


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("parts", [["assembly"], ["keypoint", "assembly"], ["person", "assembly"]])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_frozen_parts_predict_and_learn_nothing(paper_config, level, parts, shared):
    """The assembly's loss is that of the same predictions when all parts train."""
    options = ["MODEL.POSE_FPN.SHARED", str(shared), "MODEL.RESNETS.NORM", "GN"]
    want = losses_of(build(paper_config, level, options=options), batch(*PEOPLE))
    model = build(paper_config, level, parts=parts, options=options)
    losses = losses_of(model, batch(*PEOPLE))
    assert {name.split("_")[1] for name in losses} == set(parts)
    for name, value in losses.items():
        torch.testing.assert_close(value, want[name])
    # Weights that train, and none else, get a gradient of some loss.
    sum(losses.values()).backward()
    trained = {id(p) for n in parts for m in model.part_modules()[n] for p in m.parameters()}
    assert all((p.grad is not None) == (id(p) in trained) for p in model.parameters())
    # Other predictions, another loss.
    with torch.no_grad():
        model.keypoint_head.predictor.weight.mul_(-2)
    other = losses_of(model, batch(*PEOPLE))["loss_assembly_prn"]
    assert not torch.isclose(other, want["loss_assembly_prn"], rtol=1e-9, atol=0)


def test_levels_differ_in_gradients_alone(paper_config):
    """Same weights, same losses; detecting people changes nothing in the person losses."""
    found = [losses_of(build(paper_config, level), batch(*PEOPLE)) for level in range(4)]
    for losses in found[1:]:
        for name, value in losses.items():
            if name != "loss_assembly_prn":
                torch.testing.assert_close(value, found[0][name])
        torch.testing.assert_close(losses["loss_assembly_prn"], found[1]["loss_assembly_prn"])
    # Level 0 learns from annotations instead.
    assert not torch.isclose(found[0]["loss_assembly_prn"], found[1]["loss_assembly_prn"])


@pytest.mark.parametrize(("level", "mode"), [(1, "peaks"), (1, "heatmap"), (2, "heatmap")])
def test_nobody_gives_zero(paper_config, level, mode):
    inputs = batch([], [])
    nothing_found = ["MODEL.RETINANET.SCORE_THRESH_TEST", "1.0"]
    for options, x in (((), inputs), (nothing_found, batch(*PEOPLE))):
        model = build(paper_config, level, mode, options=options)
        with EventStorage() as storage:
            losses = model(x)
            assert storage.latest()["joint/matched_people"][0] == 0
        assert losses["loss_assembly_prn"] == 0
        sum(losses.values()).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        assert all(p.grad.abs().sum() == 0 for p in model.assembler.parameters())


def test_a_process_without_people_joins_in_sums_over_processes(paper_config, monkeypatch):
    """UCR's prior is summed up over all processes: one that stays out lets the others wait."""
    assembler = build(
        paper_config, 1, "peaks", options=["MODEL.ASSEMBLER.EVIDENCE", "ucr"]
    ).assembler
    calls = []
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: calls.append(float(x.sum())))
    none = Candidates(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    maps = HeatmapOutputs(torch.rand(1, K + 1, 16, 24), stride=4)
    nobody = ([none], [torch.zeros(0, 4)], [torch.zeros(0, K, 3)], maps)
    assert assembler.losses([])["loss_assembly_prn"] == 0
    # The sum of the labels and the number of people.
    assert calls == [0.0, 0.0]
    assert assembler.losses_on_predictions(*nobody)["loss_assembly_prn"] == 0
    assert calls == [0.0] * 4


@pytest.mark.parametrize("shared", ["True", "False"])
def test_norm_statistics_move_once_a_step_at_every_level(paper_config, shared):
    """Level 2 runs the keypoint pyramid and head twice."""
    options = ["MODEL.POSE_FPN.SHARED", shared, "MODEL.KP_SUBNET.NORM", "BN"]
    options += ["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.RETINANET.NORM", "BN"]
    found = []
    for level in (1, 2):
        model = build(paper_config, level, options=options)
        before = [(m.training, vars(m).get("momentum")) for m in model.modules()]
        sum(losses_of(model, batch(*PEOPLE)).values()).backward()
        assert [(m.training, vars(m).get("momentum")) for m in model.modules()] == before
        losses_of(model, batch(*PEOPLE))
        found.append(dict(model.named_buffers()))
    counters = {n: int(v) for n, v in found[1].items() if n.endswith("num_batches_tracked")}
    assert counters and set(counters.values()) == {2}
    for name, value in found[1].items():
        torch.testing.assert_close(value, found[0][name], msg=name)


@pytest.mark.parametrize(("level", "parts"), [(0, ["keypoint", "assembly"]), (1, ["assembly"])])
def test_people_of_all_processes_weigh_the_same(paper_config, level, parts, monkeypatch):
    """One person in one process, two or nobody in the other: the mean is that of one process."""

    def loss_and_gradient(inputs):
        model = build(paper_config, level, parts=parts, options=["MODEL.RESNETS.NORM", "GN"])
        loss = losses_of(model, inputs)["loss_assembly_prn"]
        loss.backward()
        return torch.cat(
            [loss.detach()[None], model.assembler.evidence.network.output.weight.grad.flatten()]
        )

    (one,), (two,), (nobody,) = batch(PEOPLE[0]), batch(PEOPLE[1]), batch([])
    for shares, people_of_all in ((([one], [two]), 3), (([two], [nobody]), 2)):
        want = loss_and_gradient(shares[0] + shares[1])
        with monkeypatch.context() as patch:
            patch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
            patch.setattr(torch.distributed, "all_reduce", lambda x, n=people_of_all: x.fill_(n))
            found = sum(loss_and_gradient(inputs) for inputs in shares) / 2
        assert want[0] > 0
        torch.testing.assert_close(found, want)


def test_matched_people_are_counted_and_level_1_takes_peaks(paper_config):
    model = build(paper_config, 1, "peaks")
    with EventStorage() as storage:
        losses = model(batch(*PEOPLE))
        assert storage.latest()["joint/matched_people"][0] == 3
    assert losses["loss_assembly_prn"] > 0


def test_wrong_levels_name_the_key(paper_config):
    for level in (2, 3):
        with pytest.raises(ValueError, match=rf"JOINT_LEVEL {level}.*MODEL\.PRN\.INPUT_MODE"):
            build(paper_config, level, "peaks")
    with pytest.raises(ValueError, match=r"MODEL\.JOINT_LEVEL is 4"):
        build(paper_config, 4)
    # Two parts together: no assembly that could ask for heatmaps.
    assert not build(paper_config, 3, "peaks", ["keypoint", "person"]).assembly_sees_predictions


def test_weights_scale_the_losses_of_their_part(paper_config):
    plain = losses_of(build(paper_config, 0), batch(*PEOPLE))
    weights = {"keypoint": 0.5, "person": 3.0, "assembly": 7.0}
    options = [x for k, v in weights.items() for x in (f"MODEL.LOSS.{k.upper()}_WEIGHT", str(v))]
    weighted = losses_of(build(paper_config, 0, options=options), batch(*PEOPLE))
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], weights[name.split("_")[1]] * value)
    # In a stage alike.
    plain = losses_of(build(paper_config, 0, parts=["person"]), batch(*PEOPLE))
    model = build(paper_config, 0, parts=["person"], options=options)
    weighted = losses_of(model, batch(*PEOPLE))
    torch.testing.assert_close(weighted["loss_person_cls"], 3 * plain["loss_person_cls"])


def test_boxes_go_to_the_person_they_overlap_most():
    persons = people([[0.0, 0, 10, 10], [6, 0, 16, 10], [40, 40, 60, 60], [80, 0, 90, 10]])
    boxes = [[1.0, 0, 11, 10], [0, 0, 10, 9], [5.5, 0, 15.5, 10], [40, 40, 60, 49], [80, 0, 90, 5]]
    found, owners = match_boxes(Boxes(torch.tensor(boxes)), persons, 3)
    # The third has IoU 0.45, the fourth exactly 0.5.
    assert found.tolist() == [boxes[1], boxes[2], boxes[4]]
    assert torch.equal(owners, persons.gt_keypoints.tensor[[0, 1, 3]])
    few = people([[0.0, 0, 10, 10]], labelled=2)
    assert len(match_boxes(Boxes(torch.tensor(boxes)), few, 3)[0]) == 0
    assert len(match_boxes(Boxes(torch.tensor(boxes)), few, 2)[0]) == 1
    # One box over two people is the one's alone.
    both = people([[0.0, 0, 10, 10], [1, 0, 11, 10]])
    found, owners = match_boxes(Boxes(torch.tensor([[0.9, 0, 10.9, 10]])), both, 3)
    assert torch.equal(owners, both.gt_keypoints.tensor[1:])
    for nothing in (match_boxes(Boxes(torch.zeros(0, 4)), persons, 3),):
        assert nothing[0].shape == (0, 4) and nothing[1].shape == (0, K, 3)
    nothing = match_boxes(Boxes(torch.tensor(boxes)), people([]), 3)
    assert nothing[0].shape == (0, 4) and nothing[1].shape == (0, K, 3)


def test_loss_on_predictions_is_that_of_crop_and_label(paper_config):
    assembler = build(paper_config, 2).assembler
    maps = torch.rand(2, K + 1, 16, 24, requires_grad=True)
    boxes = [torch.tensor([[8.0, 4.0, 44.0, 60.0]]), torch.zeros(0, 4)]
    owners = [people(boxes[0].tolist()).gt_keypoints.tensor, torch.zeros(0, K, 3)]
    none = Candidates(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    outputs = HeatmapOutputs(maps, stride=4)
    loss = assembler.losses_on_predictions([none, none], boxes, owners, outputs)
    size = (56, 36)
    want = assembler.evidence.network.loss(
        crop_heatmaps(maps[:, :K], 4, boxes, size), encode_label(owners[0], boxes[0], size, 2.0)
    )
    torch.testing.assert_close(loss["loss_assembly_prn"], want)
    loss["loss_assembly_prn"].backward()
    # The box spans columns 2 to 11 and rows 1 to 15; sampling reaches half a cell further.
    assert (
        maps.grad[0, :K, :, 13:].abs().sum() == 0 and maps.grad[0, :K, 1:15, 2:11].abs().sum() > 0
    )
    assert maps.grad[1].abs().sum() == 0 and maps.grad[:, K].abs().sum() == 0


def test_samples_of_images_follow_min_keypoints():
    instances = people([[0.0, 0, 9, 9], [5, 5, 20, 20]])
    keypoints = instances.gt_keypoints.tensor
    keypoints[:, :, 2] = 0
    keypoints[0, :2, 2] = 2
    keypoints[1, :3, 2] = 1
    (found,) = samples_from_annotations([instances], 3)
    assert found["owner"] == 1 and found["box"].tolist() == [5, 5, 20, 20]
    assert torch.equal(found["keypoints"], keypoints)
    assert len(samples_from_annotations([instances], 2)) == 2
