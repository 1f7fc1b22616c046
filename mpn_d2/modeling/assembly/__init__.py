from mpn_d2.modeling.assembly.assembler import GridAssembler, PeopleBatch
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

__all__ = [
    "EVIDENCE_REGISTRY",
    "GRID_INPUT_REGISTRY",
    "MATCHING_REGISTRY",
    "POSE_ASSEMBLER_REGISTRY",
    "GridAssembler",
    "PeopleBatch",
    "build_evidence",
    "build_grid_input",
    "build_matching",
    "build_pose_assembler",
]
