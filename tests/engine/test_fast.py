"""SPEED.MODE: the same results as the plain network, and clear words where it is not possible."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.engine import fast
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.fast import MODES, check_speed, speed_up, take_steps
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.engine.speed_people import check_people, place_people, seeing
from mpn_d2.modeling.heads import KeypointSubnet
from mpn_d2.structures.outputs import DenseOutputs

REPO = Path(__file__).resolve().parents[2]
# Their networks are those of others, to the last layer.
REPEATS = {"R_50_384", "R_50_608", "R_50_assembler", "R_50_end_to_end", "R_101_best_row", "demo"}
REPEATS |= {"drawn_coco_v1", "drawn_v1_ablation", "R_18_drawn", "overfit_two_recipe", "demo_r34"}
# Every other config of a network that has modes.
WITH_IMAGES = sorted(
    str(path.relative_to(REPO / "configs"))
    for path in (REPO / "configs").rglob("*.yaml")
    if not path.name.startswith(("Base-", "PRN_", "UCR_", "Assembler_"))
    and path.stem not in REPEATS
    and path.relative_to(REPO / "configs").parts[0] in ("MultiPoseNet", "quick")
)
NARROW = [
    *("MODEL.PRN.NODES", "8", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.KP_SUBNET.D_DIM", "32"),
    *("MODEL.KP_SUBNET.SMOOTH_DIM", "32", "MODEL.RESNETS.STEM_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "8"),
    *("MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0"),
]
half = pytest.mark.skipif(
    bool(fast.unavailable("half", "auto", "cpu")), reason="no bfloat16 on this processor"
)


def narrow(paper_config, name: str, *options: str):
    groups = paper_config(name).MODEL.RESNETS.NUM_GROUPS
    width = ["MODEL.RESNETS.WIDTH_PER_GROUP", str(32 // groups)]
    return paper_config(name, [*NARROW, *width, *options])


def shaken(model: nn.Module) -> nn.Module:
    """With norm statistics as after a training, and maps with peaks."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.0)
                module.bias.data.normal_(std=0.1)
        if isinstance(module, CycleBatchNormList):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return model.eval()


def built(cfg) -> nn.Module:
    torch.manual_seed(3)
    return shaken(build_model(cfg.clone()))


def images(*sizes: tuple[int, int]) -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=draw),
            "height": size[0],
            "width": size[1],
        }
        for size in sizes
    ]


@pytest.mark.parametrize("config", WITH_IMAGES)
def test_convolutions_of_every_config_say_the_same(config, paper_config):
    cfg = narrow(paper_config, config)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        plain = built(cfg).dense(x)
        quick = take_steps(built(cfg), MODES["fp32"]).dense(x)
    for want, got in zip(
        [plain.maps, *plain.logits, *plain.deltas],
        [quick.maps, *quick.logits, *quick.deltas],
        strict=True,
    ):
        assert got.shape == want.shape and got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()) + 1e-6)


PEOPLE_CONFIGS = ["MultiPoseNet/Lite_R_18.yaml", "MultiPoseNet/R_18_small.yaml"]


@pytest.mark.parametrize("config", PEOPLE_CONFIGS)
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_people_of_unequal_images_are_the_same(config, upsample, paper_config):
    """Sizes that are no multiples of anything, one of them of very few pixels."""
    # A group norm needs two values: two channels a group on the last level of a small image.
    options = ["MODEL.FPN.OUT_CHANNELS", "64", "MODEL.KP_SUBNET.D_DIM", "64"]
    options += ["MODEL.KP_SUBNET.UPSAMPLE", upsample]
    cfg = narrow(paper_config, config, *options)
    plain, quick = built(cfg), take_steps(built(cfg), MODES["fp32"])
    for model in (plain, quick):
        model.keypoint_head.predictor.weight.data *= 10
    inputs = images((70, 101), (1, 1), (70, 100), (130, 37))
    joints, others = 0, 0
    for want, got in zip(plain(inputs), quick(inputs), strict=True):
        a, b = want["instances"], got["instances"]
        assert len(a) == len(b)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=0.05)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(want["sem_seg"], got["sem_seg"], rtol=0, atol=1e-4)
        moved = (a.pred_keypoints - b.pred_keypoints).abs() > torch.tensor([0.1, 0.1, 1e-3])
        joints += int((a.pred_keypoints[..., 2] > 0).sum())
        others += int(moved.any(dim=-1).sum())
    # A random network has peaks that are as high as a neighbour, or as the threshold.
    assert joints > 100 and others <= 0.02 * joints
    alone = [quick([x])[0]["instances"] for x in inputs]
    for a, b in zip(alone, quick(inputs), strict=True):
        torch.testing.assert_close(
            a.pred_keypoints, b["instances"].pred_keypoints, rtol=0, atol=1e-3
        )
    assert quick([]) == plain([]) == []


@half
def test_half_is_near_and_float32_outside(paper_config):
    cfg = narrow(paper_config, "MultiPoseNet/Lite_R_18.yaml")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want, quick = built(cfg).dense(x), take_steps(built(cfg), MODES["half"])
        got = quick.dense(x)
    assert next(quick.backbone.parameters()).dtype == torch.bfloat16
    assert next(quick.assembler.parameters()).dtype == torch.float32
    for a, b in zip([want.maps, *want.logits], [got.maps, *got.logits], strict=True):
        assert b.dtype == torch.float32
        assert 0 < float((a - b).abs().max()) < 0.1 * float(a.abs().max())
    found = quick(images((64, 64)))[0]["instances"]
    assert found.pred_keypoints.dtype == found.scores.dtype == torch.float32


@half
def test_people_who_were_put_in_come_out_in_half(paper_config):
    model = take_steps(built(narrow(paper_config, "MultiPoseNet/Lite_R_18.yaml")), MODES["half"])
    people = place_people(5, 128)
    with seeing(model, people, 128):
        check_people(model(images((128, 128))), people)


def test_the_mode_reaches_network_members_and_refiner(paper_config, tmp_path):
    files = {}
    for name in ("lite_drawn", "single_person_drawn"):
        cfg = narrow(paper_config, f"quick/{name}.yaml")
        PoseCheckpointer(built(cfg), str(tmp_path)).save(name)
        files[name] = (str(tmp_path / f"{name}.yaml"), str(tmp_path / f"{name}.pth"))
        Path(files[name][0]).write_text(cfg.dump())
    main, single = files["lite_drawn"], files["single_person_drawn"]
    options = ["MODEL.DEVICE", "cpu", "OKS_NMS.MODE", "hard", "OKS_NMS.THRESH", "1.0"]
    options += ["ENSEMBLE.CONFIGS", f"['{main[0]}']", "ENSEMBLE.WEIGHTS", f"['{main[1]}']"]
    options += ["REFINE.CONFIG", single[0], "REFINE.WEIGHTS", single[1]]
    options += ["REFINE.BOX_SCORE_THRESH", "0.0"]
    results = []
    for mode in ("plain", "fp32"):
        cfg = load_config(main[0], [*options, "SPEED.MODE", mode])
        model = build_inference_model(cfg, main[1])
        assert len(model.models) == 2
        for network in (*model.models, model.refiner.model):
            assert ("dense" in vars(network)) == (mode == "fp32")
        results.append(model(images((64, 90)))[0]["instances"])
    assert len(results[0]) == len(results[1]) > 0
    torch.testing.assert_close(
        results[0].pred_keypoints, results[1].pred_keypoints, rtol=0, atol=0.1
    )


class Small(nn.Module):
    """Two levels and a keypoint subnet, quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2))
        self.backbone.size_divisibility = 8
        shapes = {f"k{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3)}
        self.keypoint_head = KeypointSubnet(
            input_shape=shapes, num_keypoints=2, d_dim=4, smooth_dim=8
        )

    def dense_modules(self) -> list[nn.Module]:
        return [self.backbone, self.keypoint_head]

    def dense(self, images: torch.Tensor) -> DenseOutputs:
        fine = self.backbone[0](images)
        levels = {"k2": fine, "k3": self.backbone[1](fine)}
        return DenseOutputs(self.keypoint_head.layers(levels).maps, [], [])


@pytest.mark.slow
@pytest.mark.skipif(bool(fast.unavailable("fp32_compiled", "auto", "cpu")), reason="no compiler")
def test_one_compiled_program_serves_all_sizes():
    plain = Small().eval()
    quick = take_steps(copy.deepcopy(plain), MODES["fp32_compiled"])
    torch._dynamo.utils.counters.clear()
    for shape in ((1, 3, 32, 40), (1, 3, 64, 24), (1, 3, 48, 88)):
        x = torch.randn(*shape)
        with torch.no_grad():
            want = plain.dense(x).maps
        torch.testing.assert_close(quick.dense(x).maps, want, rtol=0, atol=1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    if torch.backends.mkldnn.is_available():
        # Weights are constants to the compiler: those of all convolutions are laid out anew.
        assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] >= 8
    torch._dynamo.reset()


def test_many_networks_are_compiled_each_for_itself(monkeypatch):
    """An ensemble: PyTorch compiles a function only so many times."""
    compiler = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(fast.torch, "compile", compiler)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    torch._dynamo.utils.counters.clear()
    x = torch.randn(1, 3, 32, 40)
    for _ in range(2):
        plain = Small().eval()
        quick = take_steps(copy.deepcopy(plain), MODES["fp32_compiled"])
        with torch.no_grad():
            want = plain.dense(x).maps
        torch.testing.assert_close(quick.dense(x).maps, want, rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["plain", "fp32"])
def test_a_pass_that_was_interrupted_leaves_no_trace(mode, paper_config):
    """Norms count pyramid levels: Ctrl-C, or no memory left, among them must not shift them."""
    model = take_steps(built(narrow(paper_config, "MultiPoseNet/Lite_R_18.yaml")), MODES[mode])
    x = images((64, 64))
    want = model(x)[0]["instances"]
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = model.head.cls_score.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    found = model(x)[0]["instances"]
    assert torch.equal(found.scores, want.scores)
    assert torch.equal(found.pred_boxes.tensor, want.pred_boxes.tensor)


def test_folding_leaves_no_norm_that_does_not_depend_on_the_image(paper_config):
    model = take_steps(built(narrow(paper_config, "MultiPoseNet/Lite_R_18.yaml")), ["fold"])
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, CycleBatchNormList)
    assert not [m for m in model.modules() if isinstance(m, kinds)]
    model = built(narrow(paper_config, "MultiPoseNet/R_18_small.yaml"))
    groups = sum(isinstance(m, nn.GroupNorm) for m in model.modules())
    model = take_steps(model, ["fold"])
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == groups > 0


def test_a_changed_network_does_not_train_and_an_assembler_stays(paper_config):
    model = take_steps(built(narrow(paper_config, "MultiPoseNet/Lite_R_18.yaml")), ["fold"])
    assert model.eval() is model and not model.training
    with pytest.raises(ValueError, match="SPEED.MODE changed cannot train"):
        model.train()
    alone = build_model(paper_config("MultiPoseNet/Assembler_poses.yaml"))
    assert speed_up(alone, paper_config("MultiPoseNet/R_50.yaml", ["SPEED.MODE", "fp32"])) is alone
    assert "dense" not in vars(alone)


def test_modes_that_are_not_possible_are_refused(paper_config, monkeypatch):
    def config(*options: str):
        return paper_config("MultiPoseNet/R_50.yaml", list(options))

    check_speed(config("SPEED.MODE", "fp32"))
    with pytest.raises(ValueError, match="SPEED.MODE is 'quick'.*plain, fp32, half"):
        check_speed(config("SPEED.MODE", "quick"))
    with pytest.raises(ValueError, match="SPEED.DTYPE is 'int8'.*auto, bfloat16, float16"):
        check_speed(config("SPEED.DTYPE", "int8"))
    with pytest.raises(ValueError, match="half.*not available: float16 needs a GPU"):
        check_speed(config("SPEED.MODE", "half", "SPEED.DTYPE", "float16"))
    monkeypatch.setattr(fast, "_cpu_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="does not compute in bfloat16.*fp32 always is"):
        check_speed(config("SPEED.MODE", "fastest"))
    monkeypatch.setattr(fast.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(fast.sysconfig, "get_path", lambda name: "/no/headers")
    with pytest.raises(ValueError, match="there is no /no/headers/Python.h.*python3-dev"):
        check_speed(config("SPEED.MODE", "fp32_compiled"))
    # PyTorch takes g++ or the one that CXX names, whatever others there are.
    compilers = {"clang++": "/bin/clang++"}
    monkeypatch.setattr(fast.shutil, "which", compilers.get)
    monkeypatch.setattr(fast.sys, "platform", "linux")
    for variable, name in (("", "g\\+\\+"), ("icpx -fast", "icpx")):
        monkeypatch.setenv("CXX", variable)
        with pytest.raises(ValueError, match=f"needs a C\\+\\+ compiler, and there is no {name} "):
            check_speed(config("SPEED.MODE", "fp32_compiled"))
    # Before hours of training.
    with pytest.raises(ValueError, match="SPEED.MODE"):
        build_inference_model(config("SPEED.MODE", "quick"), "")


def test_a_network_without_modes_is_refused_and_not_left_as_it_is(paper_config):
    def config(name: str, mode: str):
        return paper_config(name, ["SPEED.MODE", mode])

    check_speed(config("PoseRegression/R_18_small.yaml", "plain"))
    with pytest.raises(ValueError, match="SPEED.MODE is 'fp32', and PoseRegression runs in no"):
        build_inference_model(config("PoseRegression/R_18_small.yaml", "fp32"), "")
    check_speed(config("MultiPoseNet/Assembler_poses.yaml", "fp32"))
