"""A network into a file that is compared with it before it gets its name."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.export.agreement import Agreement, compare, reference_model
from mpn_d2.export.files import (
    FORMATS,
    describe,
    quantize_onnx,
    require_export_packages,
    write_onnx,
    write_torchscript,
)
from mpn_d2.export.network import check_exportable, export_network
from mpn_d2.export.runtime import ExportedFile
from mpn_d2.utils.files import replaced_when_done

PRECISIONS = ("fp32", "fp16", "int8")
# Of what is compared beside whole photographs: parts of the first one, (height, width).
ODD_SIZES = ((97, 131), (333, 201), (150, 61))
# Name and pixels (H, W, 3) uint8 in INPUT.FORMAT.
NamedImage = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Written:
    """What came of an export: the comparison, seconds of tracing and writing, bytes of the file."""

    agreement: Agreement
    seconds: float
    size: int


def check_export(cfg: CfgNode, kind: str, precision: str) -> None:
    """Raises a ValueError that names what cannot be exported so, before any work.

    Args:
        cfg: of the network.
        kind: of FORMATS.
        precision: of PRECISIONS.
    """
    if kind not in FORMATS:
        raise ValueError(f"--format is {kind!r}; choose one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    check_exportable(cfg)
    if kind == "onnx":
        require_export_packages("onnx", "onnxruntime")
    elif precision == "int8":
        raise ValueError("--precision int8 is made by ONNX Runtime's quantization: --format onnx")


def write_export(
    cfg: CfgNode,
    model: nn.Module,
    path: str | os.PathLike,
    *,
    kind: str = "onnx",
    precision: str = "fp32",
    images: Sequence[NamedImage],
    calibration: Sequence[np.ndarray] = (),
) -> Written:
    """Exports a network; the file appears under its name once it has been run and compared.

    A file of single precision must agree with PyTorch to the bounds of `agreement`. Of half
    precision and eight bits the differences are told; they must run, and be finite.

    Args:
        cfg: of the network, checked by `check_export`.
        model: with its weights; left as it is.
        path: of the file; a former one is replaced.
        kind, precision: see `check_export`.
        images: to compare on; the first one also in parts of ODD_SIZES.
        calibration: images (H, W, 3) for the ranges of eight bits.

    Raises:
        ValueError: a network that cannot be exported, a file that disagrees; nothing is written.
    """
    if not images:
        raise ValueError("no images to compare the file with PyTorch on")
    if precision == "int8" and not calibration:
        raise ValueError("--precision int8 needs images to calibrate with: --calibration PATHS")
    network = export_network(
        model,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        precision="fp16" if precision == "fp16" else "fp32",
    )
    start = time.perf_counter()
    with replaced_when_done(path) as partial:
        if kind == "torchscript":
            write_torchscript(network, partial, describe(cfg, precision))
        elif precision == "int8":
            with tempfile.TemporaryDirectory(prefix="mpn_d2_") as folder:
                whole = Path(folder, "fp32.onnx")
                write_onnx(network, whole, describe(cfg, "fp32"))
                quantize_onnx(whole, partial, calibration, describe(cfg, precision))
        else:
            write_onnx(network, partial, describe(cfg, precision))
        seconds = time.perf_counter() - start
        agreement = compare(
            cfg, reference_model(model), ExportedFile(partial), [*images, *_parts(images[0])]
        )
        _check(agreement, path, exact=precision == "fp32")
        return Written(agreement, seconds, partial.stat().st_size)


def _parts(image: NamedImage) -> list[NamedImage]:
    name, pixels = image
    parts = [pixels[:height, :width] for height, width in ODD_SIZES]
    return [(f"{name} {part.shape[0]} x {part.shape[1]}", part) for part in parts]


def _check(agreement: Agreement, path: str | os.PathLike, *, exact: bool) -> None:
    if exact and agreement.faults:
        more = len(agreement.faults) - 1
        raise ValueError(
            f"{path} is not written: it does not agree with PyTorch: {agreement.faults[0]}"
            + (f", and {more} more" if more else "")
        )
    for name, value in agreement.largest.items():
        if not np.isfinite(value):
            raise ValueError(f"{path} is not written: its {name} is not finite")
