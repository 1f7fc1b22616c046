"""What every exported network does around its own work: an image in, people in its pixels out.

Letters: H x W the image as given, P people, K keypoint types.
"""

from __future__ import annotations

import torch
from detectron2.structures import ImageList
from torch import nn

from mpn_d2.export.resize import resize_as_pillow, shorter_side_size

INPUT_NAME = "image"
# Of every network, in the order in which a file gives them.
PEOPLE_NAMES = ("boxes", "scores", "pose_scores", "keypoints")
PRECISIONS = ("fp32", "fp16")


class ImageNetwork(nn.Module):
    """Base of the networks that are exported; `forward(image)` is theirs.

    One image (H, W, 3) uint8 in INPUT.FORMAT at a time; the frame of the results is that of the
    image, continuous pixels:

    - boxes (P, 4) x1, y1, x2, y2 inside the image, scores (P,), best first;
    - pose_scores (P,);
    - keypoints (P, K, 3) x, y, score; (0, 0, 0) where a joint was not found.

    Attributes:
        outputs: names of what `forward` gives.
        model: a copy of the network.
    """

    outputs: tuple[str, ...] = PEOPLE_NAMES

    def __init__(self, model: nn.Module, *, min_size: int, max_size: int, precision: str) -> None:
        """
        Args:
            model: in evaluation mode, without gradients; not copied.
            min_size, max_size: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; a min_size of 0 leaves images
                as they are.
            precision: of PRECISIONS.

        Raises:
            ValueError: another precision.
        """
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
        self.is_half = precision == "fp16"
        self.model = model
        self.min_size, self.max_size = min_size, max_size

    def network_input(self, image: torch.Tensor) -> tuple[ImageList, torch.Tensor, torch.Tensor]:
        """The padded network input, its (2,) height and width without padding, and the image's."""
        height, width = (torch.as_tensor(side) for side in image.shape[:2])
        channels_first = image.permute(2, 0, 1)
        if self.min_size > 0:
            size = shorter_side_size(height, width, self.min_size, self.max_size)
            channels_first = resize_as_pillow(channels_first, *size)
        images = self.model.preprocess_image([{INPUT_NAME: channels_first.float()}])
        frame = torch.stack([torch.as_tensor(x) for x in channels_first.shape[1:]])
        return images, frame, torch.stack([height, width])

    def in_image(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        pose_scores: torch.Tensor,
        keypoints: torch.Tensor,
        frame: torch.Tensor,
        size: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """PEOPLE_NAMES of people in the frame of the network input, without those whose box has
        nothing of the image.

        Args:
            boxes, scores, pose_scores, keypoints: (P, 4), (P,), (P,), (P, K, 3).
            frame, size: (2,) height and width of the network input and of the image.
        """
        corner = size.flip(0)
        scale = corner.float() / frame.flip(0).float()
        boxes = boxes * scale.repeat(2)
        boxes = torch.minimum(boxes.clamp(min=0.0), corner.repeat(2).to(boxes))
        joints = torch.cat([keypoints[..., :2] * scale, keypoints[..., 2:]], dim=2)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
        return boxes[kept], scores[kept], pose_scores[kept], joints[kept]


class InHalf(nn.Module):
    """Layers that compute in half precision between values in single."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.half()).float()
