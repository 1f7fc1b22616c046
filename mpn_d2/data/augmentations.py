"""Detectron2 augmentations that move, scale, turn and flip training images (spec 7).

All geometry is in continuous pixels (design 4.1): pixel i of an image spans [i, i + 1). A
left-right flip stays an HFlipTransform, by which the mapper knows to exchange left and right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

RECIPES = ("resize", "resize_crop", "crop")
CENTERS = ("person", "crowd", "either")
# Outside the image (spec 7); person and ignore masks are 0 there.
BORDER_VALUE = 128
# Smaller people are not the main person while there are others: their joints cannot be told apart,
# and the crop would be a blur. OpenPose's rule, whose annotations LiMeng95's code reads.
_MIN_MAIN_AREA = 32.0**2
# Enlarging further shows nothing new. [ours]
_MAX_BASE_SCALE = 5.0


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The recipe INPUT.AUGMENTATION while training; at test time the resize of the shorter edge.

    Raises:
        ValueError: a key of INPUT has no possible value.
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    if cfg.INPUT.AUGMENTATION not in RECIPES:
        raise ValueError(
            f"INPUT.AUGMENTATION is {cfg.INPUT.AUGMENTATION!r}; choose one of {', '.join(RECIPES)}"
        )
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
    flip = T.RandomFlip(prob=cfg.INPUT.FLIP_PROB, horizontal=True)
    colors = _color_jitter(cfg.INPUT.COLOR_JITTER)
    if cfg.INPUT.AUGMENTATION == "resize":
        return [resize, flip, *colors]
    if cfg.INPUT.AUGMENTATION == "resize_crop":
        side = cfg.INPUT.CROP_SIZE
        if side < 1:
            raise ValueError(f"INPUT.CROP_SIZE is {side}: at least 1 pixel is needed")
        return [resize, flip, T.RandomCrop("absolute", (side, side)), *colors]
    crop = PeopleCrop(
        size=cfg.INPUT.CROP_SIZE,
        center=cfg.INPUT.CROP_CENTER,
        jitter=cfg.INPUT.CROP_JITTER,
        person_height=cfg.INPUT.PERSON_HEIGHT,
        scale_factor=cfg.INPUT.SCALE_FACTOR,
        rotation=cfg.INPUT.ROTATION,
        resize=resize,
    )
    return [crop, flip, *colors]


def _color_jitter(share: float) -> list[T.Augmentation]:
    """Brightness, contrast and saturation, each times 1 - share to 1 + share at random."""
    if not 0 <= share < 1:
        raise ValueError(f"INPUT.COLOR_JITTER is {share}: 0 (off) to below 1 is needed")
    kinds = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
    return [kind(1 - share, 1 + share) for kind in kinds] if share else []


class AffineTransform(T.Transform):
    """Any affine map of an image, with the output cut to a given size, in one interpolation."""

    def __init__(self, matrix: np.ndarray, size: tuple[int, int]) -> None:
        """
        Args:
            matrix: (2, 3); output point = matrix @ (x, y, 1), both in continuous pixels.
            size: (H, W) of the output.
        """
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.size = size

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C) to `size`; BORDER_VALUE outside. Bilinear, after averaging whole
        blocks of pixels where they are shrunk to half or less: bilinear alone would skip pixels."""
        shrink = int(1 / math.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))
        matrix = self.matrix
        if shrink >= 2:
            img = _average_blocks(img, shrink)
            matrix = matrix * [shrink, shrink, 1]
        return self._warp(img, matrix, cv2.INTER_LINEAR, BORDER_VALUE)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) labels to `size`: those of the nearest pixels, 0 outside."""
        return self._warp(segmentation, self.matrix, cv2.INTER_NEAREST, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) x, y."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def _warp(self, image: np.ndarray, matrix: np.ndarray, mode: int, border: int) -> np.ndarray:
        # OpenCV counts from pixel centres: index = coordinate - 0.5 on both sides.
        centered = matrix.copy()
        centered[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5
        height, width = self.size
        return cv2.warpAffine(
            image,
            centered,
            (width, height),
            flags=mode,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(border,) * 4,
        )


def _average_blocks(image: np.ndarray, side: int) -> np.ndarray:
    """Means of side x side blocks; the image is filled up with BORDER_VALUE to whole blocks."""
    bottom, right = -image.shape[0] % side, -image.shape[1] % side
    if bottom or right:
        image = cv2.copyMakeBorder(
            image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(BORDER_VALUE,) * 4
        )
    size = (image.shape[1] // side, image.shape[0] // side)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class PeopleCrop(T.Augmentation):
    """A square of fixed size about people, at random moved, scaled and turned (spec 7).

    Its middle is that of the main person's box or of the box around everybody, moved by `jitter`;
    what it shows is scaled so that the main person is `person_height` high, times a random factor,
    and turned about the middle. The main person is drawn at random for a crop about a person, and
    is the tallest for one about everybody. Without people it is a crop about the image's middle,
    at the scale of `resize`.

    The people are the boxes of the AugInput, (N, 4) x1, y1, x2, y2: those that the mapper thinks
    worth looking at.
    """

    def __init__(
        self,
        *,
        size: int,
        center: str,
        jitter: float,
        person_height: float,
        scale_factor: Sequence[float],
        rotation: float,
        resize: T.ResizeShortestEdge,
    ) -> None:
        """
        Args:
            size: side of the square, pixels of the output.
            center: person | crowd | either (one of the two, each time at random).
            jitter: most that the middle moves along x and along y, pixels of the output.
            person_height: pixels of the output; 0 takes the scale of `resize`.
            scale_factor: least and largest factor on the scale.
            rotation: largest angle to each side, degrees.
            resize: gives the scale where no person does.

        Raises:
            ValueError: a value that is not possible.
        """
        super().__init__()
        low, high = check_bounds(scale_factor)
        if center not in CENTERS:
            raise ValueError(f"INPUT.CROP_CENTER is {center!r}; choose one of {', '.join(CENTERS)}")
        if size < 1:
            raise ValueError(f"INPUT.CROP_SIZE is {size}: at least 1 pixel is needed")
        for name, value in (
            ("CROP_JITTER", jitter),
            ("PERSON_HEIGHT", person_height),
            ("ROTATION", rotation),
        ):
            if value < 0:
                raise ValueError(f"INPUT.{name} is {value}: 0 or more is needed")
        self.size = size
        self.center = center
        self.jitter = jitter
        self.person_height = person_height
        self.low, self.high = low, high
        self.rotation = rotation
        self.resize = resize

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> AffineTransform:
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        middle, main = self._focus(image, boxes)
        scale = self._base_scale(image, main) * self._rand_range(self.low, self.high)
        angle = math.radians(self._rand_range(-self.rotation, self.rotation))
        shift = self._rand_range(-self.jitter, self.jitter, 2)

        cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        offset = self.size / 2 + shift - linear @ middle
        return AffineTransform(np.column_stack([linear, offset]), (self.size, self.size))

    def _focus(self, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The middle (x, y) and the main person's box, None without people."""
        if len(boxes) == 0:
            return np.array([image.shape[1], image.shape[0]]) / 2, None
        center = self.center
        if center == "either":
            center = CENTERS[np.random.randint(2)]
        heights = boxes[:, 3] - boxes[:, 1]
        if center == "crowd":
            around = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
            return _middle(around), boxes[heights.argmax()]
        large = boxes[heights * (boxes[:, 2] - boxes[:, 0]) >= _MIN_MAIN_AREA]
        candidates = large if len(large) else boxes
        main = candidates[np.random.randint(len(candidates))]
        return _middle(main), main

    def _base_scale(self, image: np.ndarray, main: np.ndarray | None) -> float:
        if main is not None and self.person_height > 0:
            return min(self.person_height / (main[3] - main[1]), _MAX_BASE_SCALE)
        resized = self.resize.get_transform(image)
        if isinstance(resized, T.NoOpTransform):
            return 1.0
        return math.sqrt(resized.new_h * resized.new_w / (resized.h * resized.w))


def _middle(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def check_bounds(factors: Sequence[float]) -> tuple[float, float]:
    """The two factors of INPUT.SCALE_FACTOR; a ValueError if they are no bounds."""
    if len(factors) != 2 or not 0 < factors[0] <= factors[1]:
        raise ValueError(
            f"INPUT.SCALE_FACTOR is {tuple(factors)}: the least and the largest factor are needed, "
            "both over 0"
        )
    return float(factors[0]), float(factors[1])
