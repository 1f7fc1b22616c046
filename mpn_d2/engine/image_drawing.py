"""People drawn on image files: which files, where the pictures go, one after another."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.pose_prediction import PosePrediction
from mpn_d2.engine.pose_predictor import PosePredictor
from mpn_d2.utils.files import JsonListWriter
from mpn_d2.utils.visualize import KEYPOINT_THRESHOLD, write_png

# What a folder is searched for; files that are named themselves may end as they like.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class DrawingOptions:
    """What is drawn of people."""

    boxes: bool = True
    mask: bool = True
    mask_threshold: float = 0.5
    keypoint_threshold: float = KEYPOINT_THRESHOLD
    heatmaps: bool = False  # as a second picture

    def draw(self, people: PosePrediction, image_rgb: np.ndarray) -> np.ndarray:
        return people.draw(
            image_rgb,
            boxes=self.boxes,
            mask=self.mask,
            mask_threshold=self.mask_threshold,
            keypoint_threshold=self.keypoint_threshold,
        )


@dataclass
class DrawingReport:
    """What became of a command's input."""

    pictures: int = 0
    people: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, line: str) -> None:
        """Notes and says what is missing in the result."""
        self.failures.append(line)
        tqdm.write(line, file=sys.stderr)


def draw_images(
    files: Sequence[str],
    targets: dict[str, str],
    predictor: PosePredictor,
    options: DrawingOptions,
    report: DrawingReport,
    rows: JsonListWriter | None,
    batch_size: int,
) -> None:
    """Draws people on images; those that cannot be read are named and the rest goes on.

    Args:
        files: images.
        targets: PNG file of each, see `name_outputs`.
        predictor: finds the people.
        options: what is drawn; heatmaps go to `heatmap_file`.
        report: what has happened is added to it.
        rows: takes the people in COCO's result format, with `file_name`.
        batch_size: images at a time.
    """
    image_ids = name_ids(files)
    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for names, images in _read_batches(files, batch_size, report, progress):
            for name, image, people in zip(names, images, predictor(images), strict=True):
                write_png(targets[name], options.draw(people, image))
                if options.heatmaps:
                    write_png(heatmap_file(targets[name]), people.draw_heatmaps(image))
                if rows is not None:
                    found = people.to_coco(image_ids[name])
                    rows.extend({**row, "file_name": name} for row in found)
                report.people += len(people)
                report.pictures += 1
                progress.update()


def _read_batches(
    files: Iterable[str], batch_size: int, report: DrawingReport, progress: tqdm
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Readable images, RGB, up to batch_size at a time; the others are named and counted."""
    names: list[str] = []
    images: list[np.ndarray] = []
    for file in files:
        try:
            images.append(read_pose_image(file, "RGB"))
            names.append(file)
        except (OSError, ValueError) as error:
            report.fail(str(error))
            progress.update()
        if len(images) == batch_size:
            yield names, images
            names, images = [], []
    if images:
        yield names, images


def find_images(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files named by paths, folders (not their subfolders) and globs, each once.

    Returns:
        (paths in the order given, sorted within folders and globs; one line for each input that
        names nothing).
    """
    found: dict[str, str] = {}
    missing = []
    for given in inputs:
        # A file may have glob characters in its name.
        matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        paths = [path for match in matches for path in _images_at(match)]
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
        if not paths:
            missing.append(f"{given}: {'no images in it' if matches else 'not found'}")
    return list(found.values()), missing


def _images_at(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(
        os.path.join(path, name)
        for name in os.listdir(path)
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )


def name_outputs(files: Sequence[str], folder: str, heatmaps: bool = False) -> dict[str, str]:
    """The PNG of each file: FOLDER/<stem>.png, with _2, _3 ... where a stem comes again.

    With `heatmaps`, FOLDER/<stem>_heatmaps.png (see `heatmap_file`) is free as well.

    Raises:
        ValueError: a picture would overwrite an input.
    """
    inputs = {os.path.realpath(file) for file in files}
    # Some file systems do not tell a.png from A.png.
    taken: set[str] = set()
    targets = {}
    for file in files:
        stem = Path(file).stem
        names, count = _picture_names(stem, heatmaps), 1
        while taken.intersection(name.casefold() for name in names):
            count += 1
            names = _picture_names(f"{stem}_{count}", heatmaps)
        taken.update(name.casefold() for name in names)
        targets[file] = os.path.join(folder, names[0])
        for path in (os.path.join(folder, name) for name in names):
            if os.path.realpath(path) in inputs:
                raise ValueError(f"--output {folder} would overwrite {path}: name another")
    return targets


def _picture_names(stem: str, heatmaps: bool) -> list[str]:
    name = f"{stem}.png"
    return [name, heatmap_file(name)] if heatmaps else [name]


def heatmap_file(path: str) -> str:
    """The file of the heatmaps beside that of the people: <stem>_heatmaps.<suffix>."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}_heatmaps{suffix}"


def name_ids(files: Sequence[str]) -> dict[str, int | str]:
    """`image_id` of each file: its stem where that is a number, as in COCO, else its name.

    A file whose id another one already has gets its path; if that is an id too, its whole path.
    """
    ids: dict[str, int | str] = {}
    taken: set[int | str] = set()
    for file in files:
        path = Path(file)
        numeric = path.stem.isascii() and path.stem.isdecimal()
        image_id: int | str = int(path.stem) if numeric else path.name
        choices = (image_id, file, os.path.abspath(file))
        ids[file] = next((c for c in choices if c not in taken), choices[-1])
        taken.add(ids[file])
    return ids
