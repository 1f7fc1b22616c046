"""The converters by the names that `tools/convert_checkpoint.py --from` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from mpn_d2.convert.detectron2_keypoint_rcnn import convert_detectron2_keypoint_rcnn
from mpn_d2.convert.detectron2_rcnn import convert_detectron2_rcnn
from mpn_d2.convert.detectron2_retinanet import convert_detectron2_retinanet
from mpn_d2.convert.moving import SHAPE_ERRORS, Converted, State
from mpn_d2.convert.multiposenet_pytorch import convert_multiposenet_pytorch
from mpn_d2.convert.prn_keras import convert_prn_keras
from mpn_d2.convert.prn_pytorch import convert_prn_pytorch
from mpn_d2.convert.rcnn_weights import fit_rcnn_weights
from mpn_d2.convert.timm_resnet import convert_timm_resnet
from mpn_d2.convert.torchvision_resnet import convert_torchvision_resnet

_MOST_NAMED = 20


@dataclass(frozen=True)
class Source:
    """One origin of weights.

    Attributes:
        convert: names and tensors of the file to ours.
        what: one line on origin and content.
        fit: makes the converted weights those that a network, given by its state, begins with; None
            where they are the same for all networks.
    """

    convert: Callable[[State], Converted]
    what: str
    fit: Callable[[State, State], dict[str, torch.Tensor]] | None = None


SOURCES = {
    "multiposenet_pytorch": Source(
        convert_multiposenet_pytorch, "LiMeng95's PyTorch code, .h5 or .pth: whole network"
    ),
    "prn_keras": Source(
        convert_prn_keras, "mkocabas/pose-residual-network (Keras, class PRN), .h5: assembler"
    ),
    "prn_keras_separate": Source(
        partial(convert_prn_keras, softmax="slice17"),
        "the same, class PRN_Seperate: a softmax over each of 17 slices",
    ),
    "prn_pytorch": Source(
        convert_prn_pytorch, "salihkaragoz/pose-residual-network-pytorch, .pth: assembler"
    ),
    "detectron2_retinanet": Source(
        convert_detectron2_retinanet,
        "Detectron2 model zoo, RetinaNet, .pkl or .pth: trunk, detection pyramid, head of class 0",
    ),
    "detectron2_keypoint_rcnn": Source(
        convert_detectron2_keypoint_rcnn,
        "Detectron2 model zoo, Keypoint R-CNN, .pkl or .pth: trunk, keypoint pyramid",
    ),
    "detectron2_rcnn": Source(
        convert_detectron2_rcnn,
        "the zoo's Keypoint or Mask R-CNN for configs/MultitaskRCNN, person of 80 classes",
        fit_rcnn_weights,
    ),
    "torchvision_resnet": Source(
        convert_torchvision_resnet, "torchvision's ResNets and ResNeXts, .pth: trunk"
    ),
    "timm_resnet": Source(convert_timm_resnet, "timm's plain ResNets, .pth: trunk"),
}


def convert(source: str, state: State) -> Converted:
    """Converts a whole state.

    Args:
        source: key of SOURCES.
        state: names and tensors as they are in the file.

    Raises:
        ValueError: no such source, a state with unknown or missing names (lists them), or with
            tensors of other shapes.
    """
    if source not in SOURCES:
        raise ValueError(f"no converter {source!r}; choose one of {', '.join(SOURCES)}")
    try:
        done = SOURCES[source].convert(state)
    except ValueError:
        raise
    except SHAPE_ERRORS as error:  # a shape that no converter has a message for
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"it has other shapes than a checkpoint of {source}: {reason}") from error
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", done.missing), ("unknown", done.unknown))
        if names
    ]
    if problems:
        raise ValueError(f"not a whole checkpoint of {source} ({'; '.join(problems)})")
    return done


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
