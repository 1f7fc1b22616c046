from mpn_d2.modeling.roi_heads.enlarged_boxes import EnlargedKeypointROIHeads
from mpn_d2.modeling.roi_heads.keypoint_offset_head import KeypointOffsetHead
from mpn_d2.modeling.roi_heads.person_mask_head import PersonMaskHead

__all__ = ["EnlargedKeypointROIHeads", "KeypointOffsetHead", "PersonMaskHead"]
