from mpn_d2.modeling.meta_arch.multiposenet import MultiPoseNet

__all__ = ["MultiPoseNet"]
