"""The training step: micro-batches, precision, clipping, dropout's stream, broken losses."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from mpn_d2.data.association import build_association_samples
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.data.loader import seeded
from mpn_d2.engine.loop import TrainingLoop, build_training_loop, sample_names, step_seed
from mpn_d2.engine.stages import stage_config
from mpn_d2.engine.trainer import PoseTrainer

SMALL = ["DATASETS.TRAIN", "('coco_sample_train',)", "MODEL.PRN.NODES", "8"]
# One crop size, no batch statistics, no dropout: micro-batches can equal the whole batch.
SMALL += ["INPUT.AUGMENTATION", "crop", "INPUT.CROP_SIZE", "96", "MODEL.RESNETS.NORM", "GN"]
SMALL += ["MODEL.PRN.DROPOUT", "0.0", "SOLVER.IMS_PER_BATCH", "4"]


class Regression(nn.Module):
    """Mean squared error; samples are {"image_id", "x", "y"}."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(5, 1)
        self.dropout = nn.Dropout(dropout)
        self.widths = []

    def forward(self, samples):
        self.widths.append(len(samples))
        x = torch.stack([s["x"] for s in samples])
        out = self.layer(self.dropout(x)).squeeze(1)
        error = (out - torch.stack([s["y"] for s in samples])).square().mean()
        return {"loss_a": error, "loss_b": 2 * out.abs().mean()}


def samples(count: int, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image_id": 100 + i, "x": torch.randn(5, generator=generator), "y": torch.tensor(1.0 * i)}
        for i in range(count)
    ]


def run(model, batches, *, steps=None, first=0, optimizer=None, **kwargs):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainingLoop(model, batches, optimizer, **kwargs)
    with EventStorage(first) as storage:
        for loop.iter in range(first, first + (steps or len(batches))):
            loop.run_step()
            storage.step()
    return loop, storage


# ------------------------------------------------------------------ accumulation


@pytest.mark.parametrize(
    ("parts", "widths"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (5, [1] * 5), (9, [1] * 5)]
)
def test_micro_batches_give_the_step_of_the_whole_batch(parts, widths):
    whole, cut = Regression(), Regression()
    batches = [samples(5, seed) for seed in range(3)]
    for batch in batches:
        whole.layer.zero_grad()
        sum(whole(batch).values()).backward()
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter -= 0.1 * parameter.grad
    _, storage = run(cut, batches, accumulation=parts)
    assert cut.widths == widths * 3
    assert torch.allclose(cut.layer.weight, whole.layer.weight, atol=1e-6)
    logged = Regression()(batches[0])
    for name, values in logged.items():
        first = storage.history(name).values()[0][0]
        assert first == pytest.approx(float(values.detach()), rel=1e-5), name


@pytest.mark.parametrize("stage", ["keypoint", "person", "assembly", "joint"])
def test_micro_batches_of_the_paper_model(stage, paper_config):
    gradients, logged = [], []
    for parts in ("1", "2"):
        cfg, model, batch = paper_model(paper_config, stage, ["SOLVER.ACCUMULATION", parts])
        if stage in ("person", "joint"):
            # Parts that have more and less to divide by; the first here nothing at all.
            batch[0]["instances"], batch[1]["instances"] = (
                batch[i]["instances"][:0] for i in (0, 1)
            )
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        loop = build_training_loop(cfg, model, [batch], optimizer)
        with EventStorage() as storage:
            loop.iter = 0
            loop.run_step()
        logged.append({k: v[0] for k, v in storage.latest().items() if "loss" in k})
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max()
        assert torch.allclose(gradient, gradients[1][name], atol=float(1e-4 * scale + 1e-8)), name
    assert any(g.abs().max() > 0 for g in gradients[0].values())
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)


# ---------------------------------------------------------------------- precision


def paper_model(paper_config, stage: str, options: list[str] = ()):
    register_pose_datasets()
    torch.manual_seed(0)
    options = [*SMALL, *options]
    cfg = stage_config(paper_config("MultiPoseNet/R_18_small.yaml", options), stage, options)
    model = PoseTrainer.build_model(cfg).train()
    dicts = load_pose_dicts("coco_sample_train", is_train=True)[:4]
    if stage == "assembly":
        batch = build_association_samples(dicts, cfg.MODEL.PRN.MIN_KEYPOINTS)[:4]
    else:
        mapper = PoseDatasetMapper(cfg, is_train=True)
        batch = []
        for position, record in enumerate(dicts):
            with seeded(0, position):
                batch.append(mapper(record))
    return cfg, model, batch


@pytest.mark.parametrize("stage", ["keypoint", "person", "assembly", "joint"])
def test_bfloat16_runs_layers_but_losses_stay_float32(stage, paper_config):
    options = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
    if stage == "joint":
        # Boxes and candidates are decoded from low-precision outputs.
        options += ["MODEL.JOINT_LEVEL", "3", "MODEL.PRN.INPUT_MODE", "heatmap"]
        options += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.001"]
    cfg, model, batch = paper_model(paper_config, stage, options)
    loop = build_training_loop(cfg, model, [batch], torch.optim.SGD(model.parameters(), lr=0.0))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    seen = set()
    hooks = [m.register_forward_hook(lambda m, x, out: seen.add(out.dtype)) for m in layers]
    with EventStorage():
        with loop.autocast():
            low = model(batch)
        assert seen == {torch.bfloat16}
        [hook.remove() for hook in hooks]
        full = model(batch)
        loop.iter = 0
        loop.run_step()
    for name, loss in low.items():
        assert loss.dtype == torch.float32, name
        # Untrained boxes, and with them the people of a joint assembly, depend on every digit.
        tolerance = 0.3 if (stage, name) == ("joint", "loss_assembly_prn") else 0.03
        assert float(loss.detach()) == pytest.approx(float(full[name].detach()), tolerance), name
        # More digits than bfloat16 has: it was not summed up in it.
        assert loss.bfloat16().float() != loss or loss == 0, name
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32, name
            assert torch.isfinite(parameter.grad).all(), name


def test_person_losses_are_those_of_the_same_outputs_in_float32(paper_config):
    cfg, model, batch = paper_model(paper_config, "person", ["SOLVER.AMP.ENABLED", "True"])
    real, calls = model.losses, []

    def losses(*args):
        calls.append(args)
        return real(*args)

    model.losses = losses
    loop = build_training_loop(cfg, model, [batch], torch.optim.SGD(model.parameters(), lr=0.0))
    with EventStorage(), loop.autocast():
        model(batch)
        inside = real(*calls[0])
    anchors, logits, labels, deltas, boxes = calls[0]
    assert logits[0].dtype == torch.bfloat16
    with EventStorage():
        outside = real(
            anchors, [x.float() for x in logits], labels, [x.float() for x in deltas], boxes
        )
    for name, loss in outside.items():
        assert float(inside[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-5), name


@pytest.mark.parametrize("stage", ["keypoint", "person"])
def test_channels_last_changes_the_layout_alone(stage, paper_config):
    found = []
    for flag in ("False", "True"):
        _, model, batch = paper_model(paper_config, stage, ["MODEL.CHANNELS_LAST", flag])
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        masks = [result["sem_seg"] for result in model.eval()(batch[:1])]
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"losses": losses, "masks": masks, "gradients": gradients})
        weight = model.head.bbox_pred.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is (flag == "True")
    assert found[0]["losses"] and len(found[0]["gradients"]) > 10
    for kind in ("losses", "masks"):
        torch.testing.assert_close(found[1][kind], found[0][kind], rtol=1e-4, atol=1e-5)
    for name, gradient in found[0]["gradients"].items():
        # Rounding tips a ReLU here and there.
        error = (found[1]["gradients"][name] - gradient).norm()
        assert error <= 0.02 * gradient.norm() + 1e-8, name


# ------------------------------------------------------------- clipping and dropout


@pytest.mark.parametrize("enabled", [False, True])
def test_clipping_works_with_adam(enabled, paper_config):
    options = ["SOLVER.CLIP_GRADIENTS.ENABLED", str(enabled), "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"]
    options += ["norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"]
    cfg = paper_config("quick/demo.yaml", options)
    model = Regression()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.Adam)
    before = model.layer.weight.clone()
    run(model, [samples(4)], optimizer=optimizer)
    norms = [float(p.grad.norm()) for p in model.parameters()]
    assert all(norm <= 0.0101 for norm in norms) is enabled
    assert not torch.equal(model.layer.weight, before)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_clipping_by_the_norm_of_the_whole_model(name, paper_config):
    options = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"]
    options += ["full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"]
    cfg = paper_config("quick/demo.yaml", [*options, "SOLVER.OPTIMIZER", name])
    model, plain = Regression(), Regression()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.Adam if name == "adam" else torch.optim.SGD)
    # Of two micro-batches: what is clipped is their sum.
    run(model, [samples(4)], optimizer=optimizer, accumulation=2)
    sum(plain(samples(4)).values()).backward()
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters()])
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert wanted.norm() > 1
    # One factor for all: the direction stays.
    torch.testing.assert_close(found, wanted / wanted.norm() * 0.01, rtol=1e-4, atol=1e-7)
    assert not torch.equal(model.layer.weight, plain.layer.weight)


def test_scaled_gradients_are_summed_then_unscaled_then_clipped(paper_config):
    """float16's scaler, here on a CPU; gradients that overflow are no step."""
    options = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"]
    options += ["full_model", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"]
    cfg = paper_config("quick/demo.yaml", [*options, "SOLVER.OPTIMIZER", "sgd"])
    found = []
    for scale in (1.0, 2.0**12, 2.0**127):
        model = Regression()
        optimizer = PoseTrainer.build_optimizer(cfg, model)
        loop = TrainingLoop(model, [samples(4)], optimizer, accumulation=2)
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with EventStorage():
            loop.iter = 0
            loop.run_step()
        found.append((model.layer.weight.detach(), loop.state_dict()["grad_scaler"]["scale"]))
    start = Regression().layer.weight
    assert not torch.equal(found[0][0], start)
    torch.testing.assert_close(found[1][0], found[0][0])
    assert torch.equal(found[2][0], start)
    assert [scale for _, scale in found] == [1.0, 2.0**12, 2.0**126]
    # The scale goes on with a resumed run.
    again = TrainingLoop(Regression(), [samples(4)], torch.optim.SGD(model.parameters(), lr=0.1))
    again.scaler = torch.amp.GradScaler("cpu")
    again.load_state_dict({**loop.state_dict(), "optimizer": again.optimizer.state_dict()})
    assert again.scaler.get_scale() == 2.0**126


def test_dropout_depends_on_the_iteration_alone():
    batches = [samples(6, seed) for seed in range(4)]
    whole = Regression(dropout=0.5)
    run(whole, batches, seed=5)
    # The same in two runs, other random numbers drawn in between.
    cut = Regression(dropout=0.5)
    run(cut, batches[:2], seed=5)
    torch.rand(17)
    run(cut, batches[2:], first=2, seed=5)
    assert torch.equal(whole.layer.weight, cut.layer.weight)
    other = Regression(dropout=0.5)
    run(other, batches, seed=6)
    assert not torch.equal(whole.layer.weight, other.layer.weight)


def test_seeds_differ():
    grid = itertools.product(range(4), range(500), range(8))
    seeds = {step_seed(*place) for place in grid}
    assert len(seeds) == 4 * 500 * 8 and all(0 <= s < 2**63 for s in seeds)
    # Neighbours share no simple relation: the first numbers drawn are spread evenly.
    first = []
    for iteration in range(400):
        torch.manual_seed(step_seed(0, iteration, 0))
        first.append(float(torch.rand(())))
    assert abs(sum(first) / 400 - 0.5) < 0.05


# ------------------------------------------------------------------ broken losses


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_loss_names_images_before_the_step(value):
    model = Regression()
    before = model.layer.weight.clone()
    batch = samples(6)
    batch[3]["y"] = torch.tensor(value)
    with pytest.raises(FloatingPointError) as caught:
        run(model, [batch], accumulation=3)
    message = str(caught.value)
    # Images 102 and 103 make the second micro-batch.
    assert "loss_a became NaN or infinite at iteration 0 on a batch of image 102, image 103:" in (
        message
    )
    assert "\n" not in message and "loss_b" not in message
    assert torch.equal(model.layer.weight, before)


class Root(Regression):
    """The root of a linear output; an input of zeros gives a loss of 0 and a NaN gradient."""

    def forward(self, samples):
        x = torch.stack([s["x"] for s in samples])
        return {"loss_a": nn.functional.linear(x, self.layer.weight).float().abs().sqrt().mean()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 3])
def test_a_broken_gradient_names_the_whole_batch_before_the_step(dtype, place):
    model, batch = Root(), samples(4)
    batch[place]["x"] = torch.zeros(5)
    start = model.layer.weight.clone()
    with pytest.raises(FloatingPointError) as caught:
        run(model, [batch], accumulation=2, amp_dtype=dtype)
    assert str(caught.value).startswith(
        "the gradient became NaN or infinite at iteration 0 on a batch of image 100, image 101, "
        "image 102, image 103: look at"
    )
    assert torch.equal(model.layer.weight, start)


def test_large_gradients_are_finite():
    """Their sum of squares is not."""
    model = Root()
    model.layer.weight.register_hook(lambda grad: torch.full_like(grad, 1e30))
    run(model, [samples(4)], optimizer=torch.optim.SGD(model.parameters(), lr=1e-30))
    assert torch.isfinite(model.layer.weight).all()


def test_samples_are_named():
    assert sample_names([{"image_id": 7, "owner": 2}, {"image_id": 8}, {}]) == [
        "image 7 person 2",
        "image 8",
        "image without id",
    ]


def test_a_long_list_of_people_is_cut(monkeypatch):
    batch = [{**s, "owner": 1} for s in samples(50)]
    batch[0]["y"] = torch.tensor(float("nan"))
    with pytest.raises(FloatingPointError, match=r"image 100 person 1, .* and 10 more: look at"):
        run(Regression(), [batch])
