"""IoU of the person mask on PASCAL VOC 2012, and the files that its server wants (E10).

Format of the devkit (section "Segmentation"): an indexed PNG of the image's size for each image, in
results/VOC2012/Segmentation/<competition>_<split>_cls, packed with its folders.
"""

from __future__ import annotations

import logging
import os
import tarfile
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mpn_d2.evaluation.segmentation import IGNORED, PERSON, PersonMaskEvaluator
from mpn_d2.utils.files import replaced_when_done

logger = logging.getLogger(__name__)

# Place of person among VOC's classes; 0 is background, 255 the border, which is ignored too.
VOC_PERSON_ID = 15
_VOC_BORDER = 255
# What they were trained on: VOC alone, anything.
COMPETITIONS = ("comp5", "comp6")


def check_competition(name: str) -> None:
    """Raises a ValueError for a competition that VOC's server does not know."""
    if name not in COMPETITIONS:
        raise ValueError(
            f"EVAL.VOC_COMPETITION is {name!r}: give comp5 (trained on VOC alone) or comp6 (on "
            "anything)"
        )


class VocPersonEvaluator(PersonMaskEvaluator):
    """The person mask against VOC's class person; all other classes are background.

    Files in `output_dir`: results/VOC2012/Segmentation/comp6_<split>_cls/<image id>.png with VOC's
    colours and the indices 0 and 15; for the test split, which has no truth here, also
    comp6_test_cls.tar.gz, ready for the server.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | None = None,
        distributed: bool = True,
        threshold: float = 0.5,
        competition: str = "comp6",
    ) -> None:
        """As PersonMaskEvaluator.

        Args:
            dataset_name: of `mpn_d2.data.voc`.
            competition: EVAL.VOC_COMPETITION.

        Raises:
            FileNotFoundError: the list of images or the folder of masks is missing.
            ValueError: an unknown competition, or a faulty threshold.
        """
        super().__init__(
            dataset_name, output_dir=output_dir, distributed=distributed, threshold=threshold
        )
        check_competition(competition)
        records = DatasetCatalog.get(dataset_name)
        self._truth_files = {r["image_id"]: r.get("sem_seg_file_name") for r in records}
        self._name = f"{competition}_{MetadataCatalog.get(dataset_name).split}_cls"
        self._folder = None
        if output_dir is not None:
            self._folder = Path(output_dir, "results", "VOC2012", "Segmentation", self._name)

    def _has_truth(self) -> bool:
        return None not in self._truth_files.values()

    def _has_people(self) -> bool:
        return True

    def _size(self, given: dict) -> tuple[int, int]:
        if not self._has_truth():
            return given["height"], given["width"]
        with _open_mask(self._truth_key(given)) as mask:
            return mask.height, mask.width

    def _truth_key(self, given: dict) -> str:
        return self._truth_files[given["image_id"]]

    def _load_truth(self, key: str, dtype: type = int) -> np.ndarray:
        """From the PNG at this path."""
        with _open_mask(key) as mask:
            classes = np.array(mask)
        truth: np.ndarray = np.where(classes == VOC_PERSON_ID, PERSON, 0).astype(dtype)
        truth[classes == _VOC_BORDER] = IGNORED
        return truth

    def _keep(self, given: dict, person: np.ndarray) -> None:
        if self._folder is not None:
            write_voc_mask(self._folder / f"{given['image_id']}.png", person)

    def _finish(self, predictions: list) -> None:
        if self._folder is None:
            return
        if self._has_truth():
            logger.info("%s: masks in %s", self._dataset_name, self._folder)
            return
        packed = Path(self._output_dir, f"{self._name}.tar.gz")
        missing = _pack(packed, Path(self._output_dir), self._folder, list(self._truth_files))
        logger.info(
            "%s has no annotations, so no metrics; for VOC's server: %s", self._dataset_name, packed
        )
        if missing:
            logger.warning("%s lacks %d of its images", packed, missing)


def voc_colormap() -> np.ndarray:
    """(256, 3) uint8 RGB: VOC's colours, the bits of an index spread over the channels."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> channel & 1) << (7 - bit)).astype(np.uint8)
        index >>= 3
    return colors


def write_voc_mask(path: str | os.PathLike, person: np.ndarray) -> None:
    """Writes (H, W) bool as VOC's palette PNG, whole or not at all; missing folders are made."""
    picture = Image.fromarray(np.where(person, VOC_PERSON_ID, 0).astype(np.uint8))
    picture.putpalette(voc_colormap().tobytes())
    with replaced_when_done(path) as partial:
        picture.save(partial, format="PNG")


def _open_mask(path: str) -> Image.Image:
    """Raises one line where it is no mask of class indices."""
    try:
        mask = Image.open(path)
        mask.load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"VOC mask {path} not found: unpack the archive again") from error
    except OSError as error:
        raise ValueError(f"VOC mask {path} cannot be read: {error}") from error
    if mask.mode not in ("P", "L"):
        raise ValueError(
            f"VOC mask {path} has mode {mask.mode}: indices of classes are needed (a palette "
            "PNG as in the archive), not colours"
        )
    return mask


def _pack(path: Path, root: Path, folder: Path, image_ids: list[str]) -> int:
    """Packs the masks of these images under their names from `root` on; returns how many lack."""
    files = [file for file in (folder / f"{i}.png" for i in image_ids) if file.is_file()]
    with replaced_when_done(path) as partial, tarfile.open(partial, "w:gz") as archive:
        for file in files:
            archive.add(file, arcname=str(file.relative_to(root)))
    return len(image_ids) - len(files)
