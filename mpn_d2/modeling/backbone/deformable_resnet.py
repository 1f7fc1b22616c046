"""ResNets with deformable 3x3 convolutions (refinement in the backbone, "RB") under an FPN.

Report of J. Ye and Z. Ma, section 3.2; spec multitask_rcnn sections 2 and 3. The network is
Detectron2's; its convolutions are replaced, names of parameters stay (new: `offset` in each).
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from mpn_d2.layers.deformable_conv import DeformableConv2d


@BACKBONE_REGISTRY.register()
def build_deformable_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet of any depth; in the stages that MODEL.RESNETS.DEFORM_ON_PER_STAGE names
    (res2 ... res5) all 3x3 convolutions are deformable. Without any it is the plain ResNet.

    Raises:
        ValueError: deformable convolutions of a kind that this builder has not.
    """
    key = "MODEL.RESNETS.DEFORM"
    stages = list(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    if cfg.MODEL.RESNETS.DEFORM_MODULATED or cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS != 1:
        raise ValueError(
            f"{key}_MODULATED and {key}_NUM_GROUPS must be False and 1: the offsets here are those "
            "of the first deformable convolutions, one group"
        )
    if len(stages) != 4:
        raise ValueError(f"{key}_ON_PER_STAGE is {stages}: four entries are needed, res2 to res5")
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * len(stages)
    network = build_resnet_backbone(plain, input_shape)
    # Features above the last wanted one are not built.
    for stage, deformed in zip(network.stages, stages, strict=False):
        if deformed:
            for block in stage:
                _deform(block)
    network.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    if cfg.RB.TRAIN_ONLY_DEFORM_STAGES:
        if not any(stages):
            raise ValueError(
                f"RB.TRAIN_ONLY_DEFORM_STAGES is True, but {key}_ON_PER_STAGE names no stage"
            )
        _freeze_all_but_deformable(network)
    return network


@BACKBONE_REGISTRY.register()
def build_deformable_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """An FPN over that ResNet with the levels of MODEL.FPN.IN_FEATURES, and one above (p6).

    Level pN has stride 2^N: res5 alone gives p5 and p6.
    """
    return FPN(
        bottom_up=build_deformable_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _deform(block) -> None:
    """Replaces the 3x3 convolutions of a residual block: one of a bottleneck, both of a basic
    block."""
    for name, layer in list(block.named_children()):
        if isinstance(layer, Conv2d) and tuple(layer.kernel_size) == (3, 3):
            setattr(block, name, DeformableConv2d.from_conv(layer))


def _freeze_all_but_deformable(network: ResNet) -> None:
    network.stem.freeze()
    for stage in network.stages:
        for block in stage:
            for layer in block.children():
                if not isinstance(layer, DeformableConv2d):
                    layer.requires_grad_(False)
                    FrozenBatchNorm2d.convert_frozen_batchnorm(layer)
