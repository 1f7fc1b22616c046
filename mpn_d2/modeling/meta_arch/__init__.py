from mpn_d2.modeling.meta_arch.multiposenet import MultiPoseNet
from mpn_d2.modeling.meta_arch.pose_assembly import PoseAssembly

__all__ = ["MultiPoseNet", "PoseAssembly"]
