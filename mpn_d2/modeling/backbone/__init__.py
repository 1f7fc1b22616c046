from mpn_d2.modeling.backbone import deformable_resnet  # noqa: F401  registered
from mpn_d2.modeling.backbone.pyramids import AnyStrideFPN, FeatureRelay, PosePyramids

__all__ = ["AnyStrideFPN", "FeatureRelay", "PosePyramids"]
