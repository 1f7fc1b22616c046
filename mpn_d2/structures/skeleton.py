"""Skeletons: which keypoints a person has, in which order, and what belongs to each.

The only place with keypoint counts, left-right pairs, edges and OKS sigmas (design 4.3).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mpn_d2.structures.skeleton_file import read_skeleton_file, skeleton_text

# RGB of drawn edges by body side, as Detectron2's Visualizer takes them (0..255).
_LEFT_COLOR = (51, 153, 255)
_RIGHT_COLOR = (255, 128, 0)
_MIDDLE_COLOR = (102, 204, 102)


@dataclass(frozen=True)
class Skeleton:
    """Keypoints of one kind of annotation; K = number of keypoints.

    Attributes:
        name: key in `get_skeleton`, or what the file calls it.
        keypoint_names: K names, in the order of the annotations' channels.
        flip_pairs: (left, right) names that a left-right flip exchanges.
        edges: pairs of names joined by a drawn line.
        sigmas: K constants of OKS, `exp(-d^2 / (2 area (2 sigma)^2))`, no unit.

    Raises:
        ValueError: a name occurs twice, a pair or edge names an unknown keypoint or one keypoint
            twice, or the sigmas are not K positive numbers; names the field.
    """

    name: str
    keypoint_names: tuple[str, ...]
    flip_pairs: tuple[tuple[str, str], ...]
    edges: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        where = f"skeleton {self.name!r}"
        twice = _first_repeated(self.keypoint_names)
        if twice is not None or not self.keypoint_names:
            fault = "is empty" if twice is None else f"has {twice!r} twice"
            raise ValueError(f"{where}: keypoint_names {fault}")
        for field in ("flip_pairs", "edges"):
            for pair in getattr(self, field):
                unknown = sorted(set(pair) - set(self.keypoint_names))
                if unknown:
                    raise ValueError(f"{where}: {field} has an unknown keypoint {unknown[0]!r}")
                if len(pair) != 2 or pair[0] == pair[1]:
                    raise ValueError(f"{where}: {field} has {pair}, not two different keypoints")
        twice = _first_repeated([name for pair in self.flip_pairs for name in pair])
        if twice is not None:
            raise ValueError(f"{where}: {twice!r} is in two flip_pairs")
        if len(self.sigmas) != self.num_keypoints:
            raise ValueError(
                f"{where}: {len(self.sigmas)} sigmas for {self.num_keypoints} keypoint_names"
            )
        for keypoint, sigma in zip(self.keypoint_names, self.sigmas, strict=True):
            if not (math.isfinite(sigma) and sigma > 0):
                raise ValueError(f"{where}: sigmas has {sigma} for {keypoint!r}, not above 0")

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> Skeleton:
        """The skeleton in a YAML file (keys: see `mpn_d2.structures.skeleton_file`).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: one line with the file, the key and what is wrong.
        """
        fields = read_skeleton_file(path)
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_yaml(self) -> str:
        """Text of a file that `from_yaml` reads."""
        return skeleton_text(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping, name: str = "metadata") -> Skeleton | None:
        """The skeleton of a dataset's metadata (MetadataCatalog); None where it tells no keypoints.

        Sigmas that the metadata does not hold are those of the built-in skeleton with the same
        names.

        Raises:
            ValueError: there is no such skeleton, or the metadata contradict themselves.
        """
        names = metadata.get("keypoint_names", None)
        if not names:
            return None
        names = tuple(names)
        sigmas = metadata.get("keypoint_sigmas", None)
        if sigmas is None:
            same = [s for s in _SKELETONS.values() if s.keypoint_names == names]
            if not same:
                raise ValueError(
                    f"dataset {name!r} has no keypoint_sigmas in its metadata: register it with "
                    "Skeleton.to_metadata()"
                )
            sigmas = same[0].sigmas
        return cls(
            name=name,
            keypoint_names=names,
            flip_pairs=tuple(tuple(p) for p in metadata.get("keypoint_flip_map", None) or ()),
            edges=tuple(
                (rule[0], rule[1]) for rule in metadata.get("keypoint_connection_rules", None) or ()
            ),
            sigmas=tuple(sigmas),
        )

    def to_metadata(self) -> dict:
        """What Detectron2's metadata of a dataset hold about keypoints, and the sigmas."""
        return {
            "keypoint_names": self.keypoint_names,
            "keypoint_flip_map": self.keypoint_flip_map,
            "keypoint_connection_rules": self.keypoint_connection_rules,
            "keypoint_sigmas": self.sigmas,
        }

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
    """The skeleton called `name` ("coco", "crowdpose", "mpii"), or that of a YAML file.

    Args:
        name: MODEL.SKELETON or DATASETS.OWN.<NAME>.SKELETON; what ends in .yaml or .yml is a
            file, relative to the working folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown name, the message lists the known ones; or a faulty file.
    """
    if name in _SKELETONS:
        return _SKELETONS[name]
    if not str(name).endswith((".yaml", ".yml")):
        raise ValueError(
            f"unknown skeleton {name!r} (MODEL.SKELETON); known: {sorted(_SKELETONS)}, or the "
            "path of a .yaml file"
        )
    path = os.path.abspath(os.path.expanduser(name))
    changed = os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
    return _skeleton_of_file(path, changed)


@functools.lru_cache(maxsize=16)
def _skeleton_of_file(path: str, changed: int) -> Skeleton:
    """`changed` is there to notice a changed file."""
    return Skeleton.from_yaml(path)


def _first_repeated(values: Sequence[str]) -> str | None:
    return next((value for i, value in enumerate(values) if value in values[:i]), None)


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

# Channels of OpenPose's body model, which some networks for COCO's people predict: its own order
# and a neck, the middle of the shoulders, that COCO does not have.
OPENPOSE_NAMES = (
    *("nose", "neck"),
    *(f"{side}_{n}" for side in ("right", "left") for n in ("shoulder", "elbow", "wrist")),
    *(f"{side}_{n}" for side in ("right", "left") for n in ("hip", "knee", "ankle")),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)

_SKELETONS = {skeleton.name: skeleton for skeleton in (_COCO, _CROWDPOSE, _MPII)}
