"""Trained networks made faster for inference, with the same results: SPEED.MODE.

Each step changes the network in place and leaves its inputs and outputs as they are:

- fold: frozen and batch norms become part of the convolution before them;
- low_resolution: levels are smoothed before they are upsampled (layers/upsampled_conv.py);
- channels_last: weights and images lie with their channels side by side;
- half: convolutions in bfloat16 or float16; the last layer of the heatmaps, box decoding, peaks
  and assembly stay float32;
- compile: torch.compile of all convolutions, for any image size, weights as constants.

A network that was changed so cannot train any more.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch._inductor.config
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import CycleBatchNormList
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mpn_d2.structures.outputs import DenseOutputs

_FP32 = ("fold", "low_resolution", "channels_last")
# Steps of each SPEED.MODE, in the order in which they are taken.
MODES = {
    "plain": (),
    "fp32": _FP32,
    "half": (*_FP32, "half"),
    "fp32_compiled": (*_FP32, "compile"),
    "fastest": (*_FP32, "half", "compile"),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_speed(cfg: CfgNode) -> None:
    """Raises a ValueError that names the key of a mode that is unknown, or not possible on this
    machine or with this network."""
    speed, device = cfg.SPEED, cfg.MODEL.DEVICE
    if speed.MODE not in MODES:
        raise ValueError(f"SPEED.MODE is {speed.MODE!r}; choose one of {', '.join(MODES)}")
    if speed.DTYPE not in ("auto", *DTYPES):
        raise ValueError(f"SPEED.DTYPE is {speed.DTYPE!r}; choose one of auto, {', '.join(DTYPES)}")
    name = cfg.MODEL.META_ARCHITECTURE
    # Others than the registered ones are refused where the network is built.
    if speed.MODE != "plain" and name in META_ARCH_REGISTRY:
        kind = META_ARCH_REGISTRY.get(name)
        if getattr(kind, "reads_images", True) and not hasattr(kind, "dense_modules"):
            raise ValueError(
                f"SPEED.MODE is {speed.MODE!r}, and {name} runs in no faster mode: set it to plain"
            )
    reason = unavailable(speed.MODE, speed.DTYPE, device)
    if reason:
        raise ValueError(
            f"SPEED.MODE {speed.MODE} (SPEED.DTYPE {speed.DTYPE}) is not available: {reason}; "
            "SPEED.MODE fp32 always is"
        )


def unavailable(mode: str, dtype: str, device: str) -> str:
    """Why a mode cannot run here; "" where it can."""
    on_gpu = device.startswith("cuda")
    if "half" in MODES[mode]:
        if not on_gpu and dtype == "float16":
            return "float16 needs a GPU, give SPEED.DTYPE bfloat16"
        if not on_gpu and not _cpu_has_bfloat16():
            return "this processor does not compute in bfloat16"
        if on_gpu and dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            return "this GPU does not compute in bfloat16, give SPEED.DTYPE float16"
    if "compile" in MODES[mode]:
        if on_gpu and importlib.util.find_spec("triton") is None:
            return "torch.compile needs Triton on a GPU"
        if not on_gpu and shutil.which(_cpp_compiler()) is None:
            return (
                f"torch.compile needs a C++ compiler, and there is no {_cpp_compiler()} (the "
                "variable CXX names another)"
            )
        headers = Path(sysconfig.get_path("include"))
        if not (headers / "Python.h").is_file():
            return (
                f"torch.compile needs Python's headers, and there is no {headers}/Python.h (Debian "
                "and Ubuntu: package python3-dev)"
            )
    return ""


def _cpp_compiler() -> str:
    """The one that PyTorch takes."""
    named = shlex.split(os.environ.get("CXX", ""))
    return named[0] if named else "clang++" if sys.platform == "darwin" else "g++"


def _cpu_has_bfloat16() -> bool:
    """Whether instructions exist; PyTorch also emulates bfloat16, slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def speed_up(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """A trained network as SPEED.MODE wants it, in evaluation mode; changed in place.

    Networks that read no images (assemblers alone) stay as they are.

    Raises:
        ValueError: see `check_speed`.
    """
    check_speed(cfg)
    return take_steps(model, MODES[cfg.SPEED.MODE], half_dtype(cfg))


def half_dtype(cfg: CfgNode) -> torch.dtype:
    """The number type that SPEED.DTYPE means on MODEL.DEVICE."""
    if cfg.SPEED.DTYPE == "auto":
        return torch.float16 if cfg.MODEL.DEVICE.startswith("cuda") else torch.bfloat16
    return DTYPES[cfg.SPEED.DTYPE]


def take_steps(
    model: nn.Module, steps: Sequence[str], dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """A network in evaluation mode after some of the steps above, changed in place.

    Args:
        model: has `dense(images) -> DenseOutputs` and `dense_modules()`; others stay as they are.
        steps: see the head of this file.
        dtype: of the step half.
    """
    model.eval()
    if not steps or not hasattr(model, "dense_modules"):
        return model
    parts = model.dense_modules()
    if "fold" in steps:
        for part in parts:
            fold_norms(part)
    head = model.keypoint_head
    if "low_resolution" in steps and hasattr(head, "smooth_at_low_resolution"):
        head.smooth_at_low_resolution()
    if "half" in steps:
        for part in parts:
            part.to(dtype)
        head.predictor = _InFloat32(head.predictor)
    if "channels_last" in steps:
        for part in parts:
            part.to(memory_format=torch.channels_last)
    model.dense = _FastDense(
        model.dense,
        dtype=dtype if "half" in steps else torch.float32,
        channels_last="channels_last" in steps,
        compiled="compile" in steps,
        step=max(model.backbone.size_divisibility, 1),
    )
    model.train = _NoTraining(model)
    return model


class _FastDense:
    """`dense` of a network for float32 images and outputs, whatever it computes in."""

    def __init__(
        self,
        dense: Callable[[torch.Tensor], DenseOutputs],
        *,
        dtype: torch.dtype,
        channels_last: bool,
        compiled: bool,
        step: int,
    ) -> None:
        """
        Args:
            dense: of the network.
            dtype: that it computes in.
            channels_last, compiled: steps that it takes.
            step: size divisibility of its images.
        """
        self.dtype = dtype
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.dense = _Compiled(dense, step) if compiled else dense

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> DenseOutputs:
        images = images.to(dtype=self.dtype, memory_format=self.layout)
        maps, logits, deltas = self.dense(images)
        return DenseOutputs(maps.float(), [x.float() for x in logits], [x.float() for x in deltas])


class _Compiled:
    """`dense` through torch.compile, one program for many sizes of images.

    The compiler sees images as h x w blocks of step x step pixels: sizes of all levels are then
    plain multiples of h and w. From free heights and widths it derives long expressions, for hours.
    """

    def __init__(self, dense: Callable[[torch.Tensor], DenseOutputs], step: int) -> None:
        def of_blocks(blocks: torch.Tensor) -> DenseOutputs:
            return dense(blocks.flatten(4, 5).flatten(2, 3))

        self.step = step
        # Networks do not use up one another's number of programs, behind which nothing is compiled.
        self.of_blocks = torch.compile(of_blocks, isolate_recompiles=True)

    def __call__(self, images: torch.Tensor) -> DenseOutputs:
        blocks = images.unflatten(3, (-1, self.step)).unflatten(2, (-1, self.step))
        for sides in (0, 2, 4):
            torch._dynamo.maybe_mark_dynamic(blocks, sides)
        # Freezing: weights are constants, which are laid out for the processor once. It must be on
        # where the network is traced, too: among the options of torch.compile it does nothing.
        with torch._inductor.config.patch(freezing=True):
            return self.of_blocks(blocks)


class _NoTraining:
    """Stands in for `train` of a network that cannot any more."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise ValueError("a network that SPEED.MODE changed cannot train: build it anew")
        return self.model


class _InFloat32(nn.Module):
    """A layer that computes in float32 whatever comes: heatmaps of 8 bits would move peaks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.float())


def fold_norms(module: nn.Module) -> None:
    """Makes every frozen or batch norm (in eval mode) a part of the convolution before it.

    In place, where the norm is the `norm` of Detectron2's Conv2d or follows a convolution in a
    Sequential. Norms over groups or layers stay: they depend on the image.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and _is_fixed(getattr(child, "norm", None)):
            _fold(child, child.norm)
            child.norm = None
        if isinstance(child, nn.Sequential):
            for i, (conv, norm) in enumerate(zip(list(child), list(child)[1:])):
                if type(conv) is not nn.Conv2d:
                    continue
                if isinstance(norm, CycleBatchNormList):
                    child[i], child[i + 1] = _ConvByLevel(conv, norm), nn.Identity()
                elif _is_fixed(norm):
                    _fold(conv, norm)
                    child[i + 1] = nn.Identity()


def _is_fixed(norm: nn.Module | None) -> bool:
    fixed = isinstance(norm, _BatchNorm | FrozenBatchNorm2d)
    return fixed and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    conv.weight, conv.bias = _folded(conv, norm, norm.weight, norm.bias)


def _folded(
    conv: nn.Conv2d, norm: nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[nn.Parameter, nn.Parameter]:
    mean, variance = norm.running_mean, norm.running_var
    return fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, weight, bias)


class _ConvByLevel(nn.Module):
    """A convolution shared by pyramid levels, with the batch norm of each level folded into it.

    Detectron2's CycleBatchNormList takes the levels by the order in which they come; so does this.
    """

    def __init__(self, conv: nn.Conv2d, norms: CycleBatchNormList) -> None:
        super().__init__()
        affine = (norms.weight, norms.bias) if norms._affine else (None, None)
        folded = [_folded(conv, norm, *affine) for norm in norms]
        self.weights = nn.ParameterList(weight for weight, _ in folded)
        self.biases = nn.ParameterList(bias for _, bias in folded)
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        self._pos = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[self._pos], self.biases[self._pos]
        self._pos = (self._pos + 1) % len(self.weights)
        return nn.functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
