from mpn_d2.modeling.backbone.hourglass import StackedHourglass
from mpn_d2.modeling.backbone.pyramids import AnyStrideFPN, FeatureRelay, PosePyramids

__all__ = ["AnyStrideFPN", "FeatureRelay", "PosePyramids", "StackedHourglass"]
