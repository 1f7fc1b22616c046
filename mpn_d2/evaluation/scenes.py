"""What an assembler is given: keypoints and boxes of images, from annotations or from files.

Frames: continuous pixels of the original image; integers are read from COCO's files (+ 0.5).
Letters: C candidates, P boxes of one image, K keypoint types. Design section 5, contract of
`tools/assemble.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torchvision.ops import box_iou

from mpn_d2.data.annotation_cache import read_json
from mpn_d2.data.association_noise import Noise, noisy_boxes, noisy_keypoints
from mpn_d2.data.datasets import has_keypoints
from mpn_d2.structures.outputs import AssembledPoses, Candidates

# What command lines call annotations as a source of keypoints or boxes.
TRUTH = "gt"
# Scores of candidates are positive: 0 would read "may not match".
_LEAST_SCORE = 1e-3
# Larger coordinates (pixels) are mistakes, as in annotation files.
_FAR = 1e5
# A box of a file and an annotated one are the same person's from that IoU on.
_SAME_PERSON = 0.5
# In `people`: somebody who is not annotated. Not -1, the owner of false keypoints.
NOBODY = -2
_UNUSABLE = f"is no number or beyond {_FAR:,.0f}"


@dataclass
class Scene:
    """Keypoints and boxes of one image.

    Attributes:
        image_id: of the annotations.
        size: (height, width), pixels.
        candidates: keypoints of everybody, in any order.
        boxes: (P, 4) x1, y1, x2, y2.
        box_scores: (P,) in [0, 1]; None for annotated boxes, which all take part.
        owners: (C,) int64 annotated person of each candidate, -1 for none; None if not known.
        people: (P,) int64 annotated person of each box, negative for nobody; None if not known.
        labelled: number of labelled joints of the image's people who have an annotated box.
    """

    image_id: int
    size: tuple[int, int]
    candidates: Candidates
    boxes: torch.Tensor
    box_scores: torch.Tensor | None = None
    owners: torch.Tensor | None = None
    people: torch.Tensor | None = None
    labelled: int = 0


@dataclass
class Skipped:
    """Counts of what a file holds and nobody can use as it is.

    Attributes:
        counts: left out, by reason.
        large_scores: scores above 1, which count as 1.
    """

    counts: Counter = field(default_factory=Counter)
    large_scores: int = 0

    def lines(self) -> list[str]:
        """One line a reason."""
        lines = [f"skipped {number} {reason}" for reason, number in sorted(self.counts.items())]
        if self.large_scores:
            lines.append(f"{self.large_scores} scores above 1 count as 1: give scores from 0 to 1")
        return lines


def check_source(option: str, path: str) -> None:
    """FileNotFoundError where a command line names neither annotations nor a file."""
    if path != TRUTH and not Path(path).is_file():
        raise FileNotFoundError(
            f"{option} {path}: no such file; give a JSON of COCO results, or {TRUTH} for the "
            "annotations"
        )


def annotated_scenes(
    dataset_dicts: list[dict],
    num_keypoints: int,
    *,
    filter_boxes: bool = False,
    noise: Noise | None = None,
    sigmas: Iterable[float] = (),
    seed: int = 0,
) -> list[Scene]:
    """Scenes of true keypoints in true boxes.

    Args:
        dataset_dicts: of `load_pose_dicts`, images without people included.
        num_keypoints: K.
        filter_boxes: leave out boxes of crowds and of people without labelled keypoints, which
            otherwise compete for the keypoints of others (EVAL.GT_BOX_FILTER).
        noise: degrade boxes and keypoints, the same for the same seed and image.
        sigmas: (K,) OKS constants, for `noise.position`.
        seed: of the noise.
    """
    scenes = []
    for record in dataset_dicts:
        people = list(record.get("annotations", ()))
        keypoints, boxes = _truth(record, people, num_keypoints)
        crowd = torch.tensor([bool(p.get("iscrowd", 0)) for p in people], dtype=torch.bool)
        # Joints of crowds are nobody's: no candidates.
        keypoints[crowd] = 0.0
        given, moved = keypoints, boxes
        if noise:
            # Ids may be texts.
            rng = np.random.default_rng((seed, crc32(str(record["image_id"]).encode())))
            moved = noisy_boxes(boxes, noise.box, rng)
            given = noisy_keypoints(keypoints, boxes, noise, tuple(sigmas), rng)
        keep = (keypoints[..., 2] > 0).any(dim=1) if filter_boxes else torch.ones_like(crowd)
        row, kind = (given[..., 2] > 0).nonzero().unbind(1)
        scenes.append(
            Scene(
                image_id=record["image_id"],
                size=(record["height"], record["width"]),
                candidates=Candidates(given[row, kind, :2], kind, torch.ones(len(row))),
                boxes=moved[keep],
                owners=torch.where(row < len(people), row, -1),
                people=keep.nonzero()[:, 0],
                labelled=int((keypoints[keep][..., 2] > 0).sum()),
            )
        )
    return scenes


def with_keypoints(
    scenes: list[Scene],
    path: str,
    num_keypoints: int,
    skipped: Skipped,
    person_id: int | None = None,
) -> list[Scene]:
    """The scenes with the keypoints of a file in the place of theirs.

    Args:
        scenes: of all images; those without an entry in the file get no keypoints.
        path: COCO results, poses {"image_id", "keypoints": [x, y, score] * K} that are taken
            apart, or [{"image_id", "keypoints": [[type, x, y, score], ...]}]; pixel indices.
        num_keypoints: K.
        skipped: counts what is left out.
        person_id: category of people; entries of another one are skipped, unless None.

    Raises:
        ValueError: the file is no such list, a wrong number of keypoints, a type out of range;
            names file and entry.
    """
    rows: dict[int, list[list[float]]] = {scene.image_id: [] for scene in scenes}
    for place, entry in _entries_of_people(path, "keypoints", rows, person_id, skipped):
        for joint in _joints(entry["keypoints"], num_keypoints, f"{path}: entry {place}"):
            if not _are_usable(joint):
                skipped.counts[f"keypoints with a coordinate or score that {_UNUSABLE}"] += 1
            elif joint[3] <= 0:
                skipped.counts["keypoints with score 0 or less"] += 1
            else:
                skipped.large_scores += joint[3] > 1
                rows[entry["image_id"]].append(joint)
    result = []
    for scene in scenes:
        table = torch.tensor(rows[scene.image_id], dtype=torch.float32).view(-1, 4)
        candidates = Candidates(
            points=table[:, 1:3] + 0.5,
            types=table[:, 0].long(),
            scores=table[:, 3].clamp(_LEAST_SCORE, 1.0),
        )
        result.append(replace(scene, candidates=candidates, owners=None))
    return result


def with_boxes(
    scenes: list[Scene], path: str, skipped: Skipped, person_id: int | None = None
) -> list[Scene]:
    """The scenes with the boxes of a file in the place of theirs.

    A box is that of the annotated person whose box it covers best, from an IoU of 0.5 on and no
    two boxes of one person.

    Args:
        scenes: of all images; those without an entry in the file get no boxes.
        path: COCO results, {"image_id", "bbox": [x, y, width, height], "score"}.
        skipped: counts what is left out.
        person_id: category of people; entries of another one are skipped, unless None.

    Raises:
        ValueError: the file is no such list; names file and entry.
    """
    rows: dict[int, list[list[float]]] = {scene.image_id: [] for scene in scenes}
    for place, entry in _entries_of_people(path, "bbox", rows, person_id, skipped):
        box, score = entry["bbox"], entry.get("score", 1.0)
        if not _is_row(box, 4) or not _is_number(score):
            raise ValueError(
                f"{path}: entry {place}: bbox must be four numbers x, y, width, height, and score "
                "a number"
            )
        if not _are_usable([*box, score]):
            skipped.counts[f"boxes with a side or score that {_UNUSABLE}"] += 1
        elif box[2] <= 0 or box[3] <= 0:
            skipped.counts["boxes without area"] += 1
        else:
            skipped.large_scores += score > 1
            rows[entry["image_id"]].append([*box, score])
    result = []
    for scene in scenes:
        table = torch.tensor(rows[scene.image_id], dtype=torch.float32).view(-1, 5)
        boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
        scores = table[:, 4].clamp(0.0, 1.0)
        people = _people_of_boxes(scene, boxes)
        result.append(replace(scene, boxes=boxes, box_scores=scores, people=people))
    return result


def _entries_of_people(
    path: str, key: str, images: Container, person_id: int | None, skipped: Skipped
) -> Iterator[tuple[int, dict]]:
    """Place and entry of everybody in a results file who is in one of the images; counts others."""
    content, _ = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: a list of results is needed, one entry a person or image")
    for place, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise ValueError(f'{path}: entry {place} is no {{"image_id", "{key}"}}')
        if person_id is not None and entry.get("category_id", person_id) != person_id:
            skipped.counts["entries of other categories than people"] += 1
            continue
        if "image_id" not in entry or key not in entry:
            raise ValueError(f'{path}: entry {place} has no "image_id" or no "{key}"')
        if not isinstance(entry["image_id"], int | float | str):
            raise ValueError(f"{path}: entry {place}: image_id must be a number or a text")
        if entry["image_id"] in images:
            yield place, entry
        else:
            skipped.counts["entries of images that are not in the annotations"] += 1


def _people_of_boxes(scene: Scene, boxes: torch.Tensor) -> torch.Tensor:
    """(P,) row of the annotated person of each box, NOBODY for none."""
    people = torch.full((len(boxes),), NOBODY)
    if scene.people is None or not len(boxes) or not len(scene.boxes):
        return people
    overlaps = box_iou(boxes, scene.boxes)
    while True:
        best = int(overlaps.argmax())
        box, person = divmod(best, overlaps.shape[1])
        if overlaps[box, person] < _SAME_PERSON:
            return people
        people[box] = scene.people[person]
        overlaps[box] = 0.0
        overlaps[:, person] = 0.0


def owner_share(scenes: list[Scene], poses: list[AssembledPoses]) -> float | None:
    """Share, 0 to 100, of the labelled joints of annotated people that came into their own box.

    None where owners are not known, or nobody has joints. Joints that are missing among the
    candidates count as not given.
    """
    given = total = 0
    for scene, pose in zip(scenes, poses, strict=True):
        if scene.owners is None or scene.people is None:
            return None
        total += scene.labelled
        found = pose.candidate_ids >= 0
        if found.any():
            owners = scene.owners[pose.candidate_ids.clamp(min=0)]
            given += int((found & (owners == scene.people[:, None])).sum())
    return 100.0 * given / total if total else None


def check_one_to_one(scenes: list[Scene], poses: list[AssembledPoses]) -> None:
    """Raises a ValueError where a candidate came into two boxes, or a joint is no candidate.

    What assembly figures rest on (design 7.1).
    """
    for scene, pose in zip(scenes, poses, strict=True):
        ids = pose.candidate_ids[pose.candidate_ids >= 0]
        if len(ids.unique()) < len(ids):
            raise ValueError(f"image {scene.image_id}: a keypoint was given to two boxes")
        invented = (pose.candidate_ids < 0) & (pose.keypoints != 0).any(dim=-1)
        if invented.any():
            raise ValueError(
                f"image {scene.image_id}: a joint that is no candidate: set "
                "MODEL.ASSEMBLER.FALLBACK to none"
            )


def to_instances(scene: Scene, pose: AssembledPoses) -> Instances:
    """What a model would return for the scene, image frame."""
    count = len(scene.boxes)
    scores = torch.ones(count) if scene.box_scores is None else scene.box_scores
    return Instances(
        scene.size,
        pred_boxes=Boxes(scene.boxes),
        scores=scores,
        pred_classes=torch.zeros(count, dtype=torch.long),
        pred_keypoints=pose.keypoints,
        pose_scores=pose.scores,
    )


def _truth(
    record: dict, people: list[dict], num_keypoints: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, K, 3) keypoints, zeros where there are none, and (P, 4) boxes of an image's people."""
    rows = []
    for person in people:
        row = person["keypoints"] if has_keypoints(person) else [0.0] * (3 * num_keypoints)
        if len(row) != 3 * num_keypoints:
            raise ValueError(
                f"image {record['image_id']}: a person has {len(row) / 3:g} keypoints, expected "
                f"{num_keypoints}: set MODEL.SKELETON to the dataset's"
            )
        rows.append(row)
    boxes = [BoxMode.convert(list(p["bbox"]), p["bbox_mode"], BoxMode.XYXY_ABS) for p in people]
    return (
        torch.tensor(rows, dtype=torch.float32).view(-1, num_keypoints, 3),
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
    )


def _joints(values: Any, num_keypoints: int, where: str) -> list[list[float]]:
    """[[type, x, y, score], ...] of a pose or of a list of keypoints."""
    if _is_row(values, None) and values:
        if len(values) != 3 * num_keypoints:
            raise ValueError(
                f"{where} has {len(values) / 3:g} keypoints, expected {num_keypoints}: give the "
                "config of the file's skeleton"
            )
        triples = zip(values[::3], values[1::3], values[2::3], strict=True)
        return [[kind, *joint] for kind, joint in enumerate(triples) if any(joint)]
    if not isinstance(values, list) or not all(_is_row(joint, 4) for joint in values):
        raise ValueError(
            f"{where}: keypoints must be {num_keypoints} times x, y, score, or a list of "
            "[type, x, y, score]"
        )
    for joint in values:
        if joint[0] not in range(num_keypoints):
            raise ValueError(f"{where}: keypoint type {joint[0]} is none of 0..{num_keypoints - 1}")
    return values


def _is_row(values: object, length: int | None) -> bool:
    return (
        isinstance(values, list)
        and (length is None or len(values) == length)
        and all(map(_is_number, values))
    )


def _are_usable(values: list[float]) -> bool:
    """False for NaN too."""
    return all(abs(value) <= _FAR for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
