from mpn_d2.modeling.backbone import deformable_resnet  # noqa: F401  registered
from mpn_d2.modeling.backbone.dense_pyramids import HighResolutionPyramid
from mpn_d2.modeling.backbone.hourglass import StackedHourglass
from mpn_d2.modeling.backbone.hrnet import HRNet
from mpn_d2.modeling.backbone.pyramids import AnyStrideFPN, FeatureRelay, PosePyramids

__all__ = [
    "AnyStrideFPN",
    "FeatureRelay",
    "HRNet",
    "HighResolutionPyramid",
    "PosePyramids",
    "StackedHourglass",
]
