from mpn_d2.modeling.assembly import grid_evidence, learned_evidence  # noqa: F401  registered
from mpn_d2.modeling.assembly.assembler import PoseAssembler
from mpn_d2.modeling.assembly.build import (
    EVIDENCE_REGISTRY,
    GRID_INPUT_REGISTRY,
    MATCHING_REGISTRY,
    POSE_ASSEMBLER_REGISTRY,
    build_evidence,
    build_grid_input,
    build_matching,
    build_pose_assembler,
)
from mpn_d2.modeling.assembly.people_batch import PeopleBatch

__all__ = [
    "EVIDENCE_REGISTRY",
    "GRID_INPUT_REGISTRY",
    "MATCHING_REGISTRY",
    "POSE_ASSEMBLER_REGISTRY",
    "PeopleBatch",
    "PoseAssembler",
    "build_evidence",
    "build_grid_input",
    "build_matching",
    "build_pose_assembler",
]
