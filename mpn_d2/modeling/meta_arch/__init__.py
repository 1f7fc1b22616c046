from mpn_d2.modeling.meta_arch.associative_embedding import AssociativeEmbedding
from mpn_d2.modeling.meta_arch.multiposenet import MultiPoseNet
from mpn_d2.modeling.meta_arch.multiposenet_scored import ScoredMultiPoseNet
from mpn_d2.modeling.meta_arch.pose_assembly import PoseAssembly
from mpn_d2.modeling.meta_arch.pose_regression import PoseRegression
from mpn_d2.modeling.meta_arch.single_person import SinglePersonNet
from mpn_d2.modeling.meta_arch.unified_association import RecurrentAssociation

__all__ = [
    "AssociativeEmbedding",
    "MultiPoseNet",
    "PoseAssembly",
    "PoseRegression",
    "RecurrentAssociation",
    "ScoredMultiPoseNet",
    "SinglePersonNet",
]
