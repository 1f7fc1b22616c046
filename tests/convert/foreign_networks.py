"""LiMeng95's network in plain functions of its own state (table: docs/checkpoints.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, torch.Tensor]
PRN_ENTRIES = 56 * 36 * 17
# COCO index of each channel without the neck, which is channel 1 of the 18.
COCO_INDEX = (0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)


def shapes(
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    base: int = 64,
    channels: int = 256,
    d_dim: int = 128,
    classes: int = 1,
    nodes: int = 1024,
) -> Shapes:
    """Names and shapes of a whole checkpoint, counters included."""
    found: Shapes = {}

    def conv(name: str, out: int, inside: int, side: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (out, inside, side, side)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{leaf}"] = (width,)
        found[f"{name}.num_batches_tracked"] = ()

    conv("fpn.conv1", base, 3, 7, bias=False)
    norm("fpn.bn1", base)
    inside = base
    for layer, count in enumerate(blocks, start=1):
        width = base * 2 ** (layer - 1)
        for block in range(count):
            name = f"fpn.layer{layer}.{block}"
            for i, (out, into, side) in enumerate(
                ((width, inside, 1), (width, width, 3), (4 * width, width, 1)), start=1
            ):
                conv(f"{name}.conv{i}", out, into, side, bias=False)
                norm(f"{name}.bn{i}", out)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * width, inside, 1, bias=False)
                norm(f"{name}.downsample.1", 4 * width)
            inside = 4 * width
    levels = [base * 4 * 2**i for i in range(4)]  # C2 to C5
    for name, width in zip(("toplayer", "flatlayer1", "flatlayer2", "flatlayer3"), levels[::-1]):
        conv(f"fpn.{name}", channels, width, 1)
    for name, width in zip(("latlayer1", "latlayer2", "latlayer3"), levels[:0:-1]):
        conv(f"fpn.{name}", channels, width, 1)
    for name in ("smooth1", "smooth2", "smooth3", "toplayer0", "toplayer1", "toplayer2", "conv7"):
        conv(f"fpn.{name}", channels, channels, 3)
    conv("fpn.conv6", channels, levels[-1], 3)
    for i in range(1, 5):
        conv(f"convfin_k{i + 1}", 19, channels, 1)
        conv(f"convt{i}", d_dim, channels, 3)
        conv(f"convs{i}", d_dim, d_dim, 3)
        conv(f"regressionModel.conv{i}", channels, channels, 3)
        conv(f"classificationModel.conv{i}", channels, channels, 3)
    conv("conv2", channels, 4 * d_dim, 3)
    conv("convfin", 18, channels, 1)
    conv("regressionModel.output", 36, channels, 3)
    conv("classificationModel.output", 9 * classes, channels, 3)
    for name, out, into in (
        ("dens1", nodes, PRN_ENTRIES),
        ("bneck", nodes, nodes),
        ("dens2", PRN_ENTRIES, nodes),
    ):
        found[f"prn.{name}.weight"], found[f"prn.{name}.bias"] = (out, into), (out,)
    return found


def random_weights(of: Shapes) -> Weights:
    """Values of a size that passes through all layers."""
    weights = {}
    for name, shape in of.items():
        if not shape:
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            weights[name] = 0.5 + torch.rand(shape)
        elif len(shape) == 1:
            weights[name] = 0.2 * torch.randn(shape)
        else:
            weights[name] = torch.randn(shape) * torch.tensor(shape[1:]).prod() ** -0.5
    return weights


class Network:
    """Forward passes, in evaluation mode."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, var = (
            self.weights[f"{name}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def trunk(self, images: torch.Tensor) -> list[torch.Tensor]:
        """C2 to C5 of images (N, 3, H, W): RGB, 0 to 255."""
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        x = self.norm("fpn.bn1", self.conv("fpn.conv1", (images / 255 - mean) / std, 2)).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for layer in range(1, 5):
            block = 0
            while f"fpn.layer{layer}.{block}.conv1.weight" in self.weights:
                stride = 2 if block == 0 and layer > 1 else 1
                x = self._bottleneck(f"fpn.layer{layer}.{block}", x, stride)
                block += 1
            features.append(x)
        return features

    def _bottleneck(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x)).relu()
        y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y, stride)).relu()
        y = self.norm(f"{name}.bn3", self.conv(f"{name}.conv3", y))
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))
        return (x + y).relu()

    def heatmaps(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, dict]:
        """(N, 18, H, W) final maps and per level (N, 19, H_l, W_l)."""
        c2, c3, c4, c5 = features
        k5 = self.conv("fpn.toplayer", c5)
        p4 = _larger(k5, 2) + self.conv("fpn.flatlayer1", c4)
        p3 = _larger(p4, 2) + self.conv("fpn.flatlayer2", c3)
        p2 = _larger(p3, 2) + self.conv("fpn.flatlayer3", c2)
        levels = [
            k5,
            self.conv("fpn.smooth1", p4),
            self.conv("fpn.smooth2", p3),
            self.conv("fpn.smooth3", p2),
        ]
        wide = [
            _larger(self.conv(f"convs{i}", self.conv(f"convt{i}", k)), 2 ** (4 - i))
            for i, k in enumerate(levels, start=1)
        ]
        final = self.conv("convfin", self.conv("conv2", torch.cat(wide, dim=1)).relu())
        names = ("k5", "k4", "k3", "k2")
        return final, {n: self.conv(f"convfin_{n}", k) for n, k in zip(names, levels)}

    def boxes(self, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        """Per level of one image, 3 to 7: (H * W * 9, 4) anchors and boxes, (H * W * 9,) chances.

        Anchors go through the scales of each ratio.
        """
        _, c3, c4, c5 = features
        q5 = self.conv("fpn.latlayer1", c5)
        q4 = _larger(q5, 2) + self.conv("fpn.latlayer2", c4)
        q3 = _larger(q4, 2) + self.conv("fpn.latlayer3", c3)
        p6 = self.conv("fpn.conv6", c5, 2)
        levels = [
            self.conv("fpn.toplayer2", q3),
            self.conv("fpn.toplayer1", q4),
            self.conv("fpn.toplayer0", q5),
            p6,
            self.conv("fpn.conv7", p6.relu(), 2),
        ]
        return [self._boxes_of_level(x, level) for level, x in enumerate(levels, start=3)]

    def _boxes_of_level(self, x: torch.Tensor, level: int) -> tuple[torch.Tensor, ...]:
        towers = []
        for name in ("regressionModel", "classificationModel"):
            y = x
            for i in range(1, 5):
                y = self.conv(f"{name}.conv{i}", y).relu()
            towers.append(self.conv(f"{name}.output", y)[0].permute(1, 2, 0))
        height, width = towers[0].shape[:2]
        deltas = towers[0].reshape(height, width, 9, 4)
        chances = towers[1].reshape(height, width, 9, -1)[..., 0].sigmoid()
        anchors = torch.empty(height, width, 9, 4)
        for r, ratio in enumerate((0.5, 1.0, 2.0)):
            for s in range(3):
                side = 2 ** (level + 2) * 2 ** (s / 3)
                w, h = side / ratio**0.5, side * ratio**0.5
                x_mid = (torch.arange(width) + 0.5)[None, :] * 2**level
                y_mid = (torch.arange(height) + 0.5)[:, None] * 2**level
                for i, edge in enumerate(
                    (x_mid - w / 2, y_mid - h / 2, x_mid + w / 2, y_mid + h / 2)
                ):
                    anchors[:, :, 3 * r + s, i] = edge.expand(height, width)
        sides = anchors[..., 2:] - anchors[..., :2]
        middle = anchors[..., :2] + sides / 2 + deltas[..., :2] * 0.1 * sides
        sides = sides * (deltas[..., 2:] * 0.2).exp()
        boxes = torch.cat([middle - sides / 2, middle + sides / 2], dim=-1)
        return anchors.flatten(0, 2), boxes.flatten(0, 2), chances.flatten()

    def prn(self, grids: torch.Tensor) -> torch.Tensor:
        """(B, 17, 56, 36) input grids of COCO's keypoints to output grids."""
        order = list(COCO_INDEX)
        flat = grids[:, order].permute(0, 2, 3, 1).flatten(1)
        y = flat
        for name in ("dens1", "bneck", "dens2"):
            y = F.linear(y, self.weights[f"prn.{name}.weight"], self.weights[f"prn.{name}.bias"])
            y = y.relu()
        chances = (y + flat).softmax(dim=1).view(-1, 56, 36, 17).permute(0, 3, 1, 2)
        result = torch.empty_like(chances)
        result[:, order] = chances
        return result


def _larger(x: torch.Tensor, factor: int) -> torch.Tensor:
    return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
