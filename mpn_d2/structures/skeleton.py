"""Skeletons: which keypoints a person has, in which order, and what belongs to each.

The only place with keypoint counts, left-right pairs, edges and OKS sigmas (design 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

# RGB of drawn edges by body side, as Detectron2's Visualizer takes them (0..255).
_LEFT_COLOR = (51, 153, 255)
_RIGHT_COLOR = (255, 128, 0)
_MIDDLE_COLOR = (102, 204, 102)


@dataclass(frozen=True)
class Skeleton:
    """Keypoints of one kind of annotation; K = number of keypoints.

    Attributes:
        name: key in `get_skeleton`.
        keypoint_names: K names, in the order of the annotations' channels.
        flip_pairs: (left, right) names that a left-right flip exchanges.
        edges: pairs of names joined by a drawn line.
        sigmas: K constants of OKS, `exp(-d^2 / (2 area (2 sigma)^2))`, no unit.

    Raises:
        ValueError: a pair or edge names an unknown keypoint, or the sigmas are not K.
    """

    name: str
    keypoint_names: tuple[str, ...]
    flip_pairs: tuple[tuple[str, str], ...]
    edges: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        known = set(self.keypoint_names)
        if len(known) != len(self.keypoint_names):
            raise ValueError(f"skeleton {self.name!r}: a keypoint name occurs twice")
        for pair in (*self.flip_pairs, *self.edges):
            unknown = sorted(set(pair) - known)
            if unknown:
                raise ValueError(f"skeleton {self.name!r}: unknown keypoint {unknown[0]!r}")
        paired = [name for pair in self.flip_pairs for name in pair]
        if len(set(paired)) != len(paired):
            raise ValueError(f"skeleton {self.name!r}: a keypoint is in two flip pairs")
        if len(self.sigmas) != self.num_keypoints:
            raise ValueError(
                f"skeleton {self.name!r}: {len(self.sigmas)} sigmas "
                f"for {self.num_keypoints} keypoints"
            )

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoint_names)

    @property
    def flip_indices(self) -> tuple[int, ...]:
        """K indices: after a left-right flip, keypoint i is what was keypoint flip_indices[i]."""
        partner = {}
        for left, right in self.flip_pairs:
            partner[left], partner[right] = right, left
        return tuple(self.keypoint_names.index(partner.get(n, n)) for n in self.keypoint_names)

    @property
    def edge_indices(self) -> tuple[tuple[int, int], ...]:
        """The edges as pairs of keypoint indices."""
        index = {name: i for i, name in enumerate(self.keypoint_names)}
        return tuple((index[a], index[b]) for a, b in self.edges)

    @property
    def keypoint_flip_map(self) -> tuple[tuple[str, str], ...]:
        """The flip pairs under the name that Detectron2's metadata uses."""
        return self.flip_pairs

    @property
    def keypoint_connection_rules(self) -> list[tuple[str, str, tuple[int, int, int]]]:
        """Edges with RGB colours (0..255) for Detectron2's Visualizer, one colour a side."""
        left = {pair[0] for pair in self.flip_pairs}
        right = {pair[1] for pair in self.flip_pairs}

        def color(edge: tuple[str, str]) -> tuple[int, int, int]:
            on_left, on_right = bool(left & set(edge)), bool(right & set(edge))
            if on_left == on_right:
                return _MIDDLE_COLOR
            return _LEFT_COLOR if on_left else _RIGHT_COLOR

        return [(a, b, color((a, b))) for a, b in self.edges]


def get_skeleton(name: str) -> Skeleton:
    """The skeleton called `name` ("coco", "crowdpose", "mpii").

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in _SKELETONS:
        raise ValueError(f"unknown skeleton {name!r} (MODEL.SKELETON); known: {sorted(_SKELETONS)}")
    return _SKELETONS[name]


def _sided(*parts: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"left_{part}", f"right_{part}") for part in parts)


def _both_sides(*edges: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in edges)


_LIMBS = _both_sides(("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))

# Sigmas: pycocotools' kpt_oks_sigmas (COCO keypoint evaluation). Edges: the "skeleton" of
# COCO's annotation files.
_COCO = Skeleton(
    name="coco",
    keypoint_names=(
        "nose",
        *(n for p in _sided("eye", "ear", "shoulder", "elbow", "wrist") for n in p),
        *(n for p in _sided("hip", "knee", "ankle") for n in p),
    ),
    flip_pairs=_sided("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
    edges=(
        *_LIMBS,
        *_both_sides(("shoulder", "hip"), ("eye", "ear"), ("ear", "shoulder")),
        ("left_hip", "right_hip"),
        ("left_shoulder", "right_shoulder"),
        ("left_eye", "right_eye"),
        ("nose", "left_eye"),
        ("nose", "right_eye"),
    ),
    sigmas=(
        0.026,
        *(0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
        *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
)

# Sigmas: CrowdPose's own evaluation.
_CROWDPOSE = Skeleton(
    name="crowdpose",
    keypoint_names=(
        *(n for p in _sided("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for n in p),
        "head",
        "neck",
    ),
    flip_pairs=_sided("shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
    edges=(
        *_LIMBS,
        *_both_sides(("shoulder", "hip")),
        ("left_hip", "right_hip"),
        ("left_shoulder", "right_shoulder"),
        ("head", "neck"),
        ("neck", "left_shoulder"),
        ("neck", "right_shoulder"),
    ),
    sigmas=(
        *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
        *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
        *(0.079, 0.079),
    ),
)

# MPII is scored by PCKh and has no sigmas: COCO's for the shared joints, CrowdPose's for neck
# and head, the hips' and shoulders' for pelvis and thorax [ours].
_MPII = Skeleton(
    name="mpii",
    keypoint_names=(
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("pelvis", "thorax", "upper_neck", "head_top"),
        *("right_wrist", "right_elbow", "right_shoulder"),
        *("left_shoulder", "left_elbow", "left_wrist"),
    ),
    flip_pairs=_sided("shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
    edges=(
        *_LIMBS,
        ("pelvis", "left_hip"),
        ("pelvis", "right_hip"),
        ("pelvis", "thorax"),
        ("thorax", "left_shoulder"),
        ("thorax", "right_shoulder"),
        ("thorax", "upper_neck"),
        ("upper_neck", "head_top"),
    ),
    sigmas=(
        *(0.089, 0.087, 0.107, 0.107, 0.087, 0.089),
        *(0.107, 0.079, 0.079, 0.079),
        *(0.062, 0.072, 0.079, 0.079, 0.072, 0.062),
    ),
)

_SKELETONS = {skeleton.name: skeleton for skeleton in (_COCO, _CROWDPOSE, _MPII)}
