"""Keypoint subnet: shapes, parameters, targets, losses and their gradients (spec 3, 6, 8)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.modeling.heads import HeatmapTargets, KeypointSubnet
from mpn_d2.modeling.losses import masked_heatmap_loss
from mpn_d2.structures.outputs import HeatmapOutputs

K = 5


def shapes(channels: int = 6, strides=(4, 8, 16, 32)) -> dict[str, ShapeSpec]:
    return {f"k{i}": ShapeSpec(channels=channels, stride=s) for i, s in enumerate(strides, start=2)}


def features(height: int, width: int, channels: int = 6, strides=(4, 8, 16, 32), batch: int = 2):
    return {
        f"k{i}": torch.randn(batch, channels, height // s, width // s)
        for i, s in enumerate(strides, start=2)
    }


def head(**kwargs) -> KeypointSubnet:
    args = {"input_shape": shapes(), "num_keypoints": K, "d_dim": 4, "smooth_dim": 8} | kwargs
    return KeypointSubnet(**args)


def test_parameter_counts_of_the_paper():
    subnet = KeypointSubnet(input_shape=shapes(256), num_keypoints=17)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(subnet.d_convs) == 1_770_496
    assert count(subnet.smooth) == 1_179_904
    assert count(subnet.predictor) == 4_626
    assert count(subnet.intermediate) == 18_504


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (4, 8, 16, 16)])
def test_shapes(upsample, strides):
    subnet = head(input_shape=shapes(strides=strides), upsample=upsample)
    outputs = subnet.train().layers(features(64, 96, strides=strides))
    assert outputs.maps.shape == (2, K + 1, 16, 24)
    assert outputs.stride == 4
    assert list(outputs.intermediate) == ["k2", "k3", "k4", "k5"]
    outputs = subnet.eval().layers(features(64, 96, strides=strides))
    assert outputs.intermediate == {}


def test_layers_by_hand():
    # Every convolution passes its first channel through: the output is the sum over the levels
    # of the upsampled first channels (after the ReLUs).
    subnet = head(d_dim=1, smooth_dim=1)
    with torch.no_grad():
        for module in (*subnet.d_convs.modules(), subnet.smooth, subnet.predictor):
            if isinstance(module, torch.nn.Conv2d):
                module.weight.zero_()
                module.bias.zero_()
                middle = module.kernel_size[0] // 2
                module.weight[0, 0, middle, middle] = 1
        subnet.smooth.weight[0, :, 1, 1] = 1
    x = features(32, 32)
    want = sum(
        x[f"k{i}"][:, 0].relu().repeat_interleave(s, 1).repeat_interleave(s, 2)
        for i, s in ((2, 1), (3, 2), (4, 4), (5, 8))
    )
    torch.testing.assert_close(subnet.layers(x).maps[:, 0], want)


def test_linear_d_convolutions_and_no_intermediate():
    subnet = head(d_relu=False, intermediate_weight=0.0).train()
    assert len(subnet.intermediate) == 0
    outputs = subnet.layers(features(32, 32))
    targets = HeatmapTargets(torch.zeros_like(outputs.maps), torch.ones_like(outputs.maps))
    assert list(subnet.losses(outputs, targets)) == ["loss_keypoint_final"]
    x = torch.randn(1, 6, 8, 8)
    assert (subnet.d_convs["k2"](x) < 0).any()
    assert (head().d_convs["k2"](x) >= 0).all()


def test_wrong_upsampling_is_named():
    with pytest.raises(ValueError, match="UPSAMPLE"):
        head(upsample="cubic")


def test_targets():
    subnet = head(sigma=6.0)
    people = torch.tensor([[[10.0, 12.0, 2.0]] * K, [[30.0, 20.0, 1.0]] * K])
    people[1, 0, 2] = 0
    person = torch.zeros(7, 9, dtype=torch.uint8)
    person[2:4, 1:5] = 1
    ignore = torch.zeros(7, 9, dtype=torch.uint8)
    ignore[5, 5] = 1
    empty = torch.zeros(8, 6, dtype=torch.uint8)
    targets = subnet.make_targets(
        [people, torch.zeros(0, K, 3)], [person, empty], [ignore, empty], (8, 10)
    )
    assert targets.maps.shape == targets.loss_mask.shape == (2, K + 1, 8, 10)
    want = encode_heatmaps([people, torch.zeros(0, K, 3)], K, (8, 10), 4, 6.0)
    torch.testing.assert_close(targets.maps[:, :K], want)
    assert targets.maps[0, K].sum() == 8 and targets.maps[0, K, 2, 1] == 1
    assert targets.loss_mask[0, :, 5, 5].abs().max() == 0
    # Everything else counts, the padding too.
    assert targets.loss_mask.sum() == 2 * (K + 1) * 80 - (K + 1)
    unmasked = head(mask_seg=False).make_targets([people[:1]], [person], [ignore], (8, 10))
    assert unmasked.loss_mask[0, K].min() == 1 and unmasked.loss_mask[0, 0].min() == 0
    # 2: a person with keypoints and no mask.
    ignore[1, 1] = 2
    for mask_seg, kept in ((True, [0, 0]), (False, [1, 0])):
        subnet = head(mask_seg=mask_seg)
        loss_mask = subnet.make_targets([people[:1]], [person], [ignore], (8, 10)).loss_mask[0]
        assert (loss_mask[:K, 1, 1] == 1).all() and (loss_mask[:K, 5, 5] == 0).all()
        assert loss_mask[K, [5, 1], [5, 1]].tolist() == kept
    ignore[1, 1] = 0
    light = head(mask_weight=0.25).make_targets([people[:1]], [person], [ignore], (8, 10))
    assert light.loss_mask[0, K].unique().tolist() == [0, 0.25]
    assert light.loss_mask[0, :K].unique().tolist() == [0, 1]


@pytest.mark.parametrize("peak_weight", [0.0, 4.0])
def test_peaks_weigh_more_by_their_target(peak_weight):
    """W (1 + w t) cell by cell; 0 leaves the paper's loss; the mask channel is left alone."""
    options = {"peak_weight": peak_weight} if peak_weight else {}
    subnet = head(mask_weight=0.5, **options)
    people = torch.tensor([[[10.0, 12.0, 2.0]] * K, [[30.0, 20.0, 1.0]] * K])
    person = torch.randint(0, 2, (8, 10), dtype=torch.uint8)
    # Right through the first person's peaks.
    ignore = torch.zeros(8, 10, dtype=torch.uint8)
    ignore[:3] = 1
    targets = subnet.make_targets([people], [person], [ignore], (8, 10))
    maps = torch.rand(1, K + 1, 8, 10, requires_grad=True)
    subnet.train()
    loss = subnet.losses(HeatmapOutputs(maps, 4), targets)["loss_keypoint_final"]
    want = 0.0
    for c in range(K + 1):
        for i in range(8):
            for j in range(10):
                target, w = targets.maps[0, c, i, j].item(), 0.0 if i < 3 else 1.0
                w *= 1 + peak_weight * target if c < K else 0.5
                want += w * (maps[0, c, i, j].item() - target) ** 2
    assert loss.item() == pytest.approx(want / maps.numel(), rel=1e-4)
    assert targets.maps[0, :K, 3:].max() > 0.9 and targets.maps[0, :K, :3].max() > 0.5
    loss.backward()
    assert maps.grad[0, :, :3].abs().max() == 0 and (maps.grad[0, :, 3:] != 0).all()


def test_losses_equal_the_formula_and_respect_the_ignore_region():
    subnet = head(intermediate_weight=0.5, final_weight=2.0).train()
    x = {name: f.requires_grad_() for name, f in features(32, 64).items()}
    outputs = subnet.layers(x)
    maps = torch.rand(2, K + 1, 8, 16)
    mask = (torch.rand(2, 1, 8, 16) > 0.4).float().expand_as(maps)
    losses = subnet.losses(outputs, HeatmapTargets(maps, mask))
    assert set(losses) == {f"loss_keypoint_{n}" for n in ("final", "k2", "k3", "k4", "k5")}
    want = 0.0
    for n in range(2):
        for c in range(K + 1):
            for i in range(8):
                for j in range(16):
                    d = outputs.maps[n, c, i, j].item() - maps[n, c, i, j].item()
                    want += mask[n, c, i, j].item() * d * d
    assert losses["loss_keypoint_final"].item() == pytest.approx(
        2.0 * want / maps.numel(), rel=1e-4
    )
    k5 = outputs.intermediate["k5"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    want = 0.5 * (mask * (k5 - maps) ** 2).mean()
    torch.testing.assert_close(losses["loss_keypoint_k5"], want)


def test_ignored_cells_give_exactly_no_gradient():
    maps = torch.randn(2, 3, 6, 6, requires_grad=True)
    mask = torch.ones(2, 1, 6, 6)
    mask[0, 0, :3] = 0
    masked_heatmap_loss(maps, torch.rand(2, 3, 6, 6), mask).backward()
    assert maps.grad[0, :, :3].abs().max() == 0
    assert (maps.grad[0, :, 3:] != 0).all() and (maps.grad[1] != 0).all()
    empty = torch.zeros(0, 3, 6, 6, requires_grad=True)
    loss = masked_heatmap_loss(empty, torch.zeros(0, 3, 6, 6), torch.zeros(0, 1, 6, 6))
    loss.backward()
    assert loss.item() == 0
    with pytest.raises(ValueError, match="targets"):
        masked_heatmap_loss(torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6, 5), torch.ones(1))


def test_inference_reads_peaks_and_mask():
    subnet = head().eval()
    points = torch.tensor([[[21.3, 17.8, 2.0]] * K])
    maps = torch.cat(
        [encode_heatmaps([points], K, (10, 12), 4, 7.0), torch.full((1, 1, 10, 12), 1.4)], dim=1
    )
    candidates, mask = subnet.inference(HeatmapOutputs(maps, 4), [(40, 48)])
    assert candidates[0].types.tolist() == list(range(K))
    torch.testing.assert_close(candidates[0].points, points[0, :, :2], atol=0.05, rtol=0)
    assert mask.shape == (1, 10, 12) and mask.max() == 1
