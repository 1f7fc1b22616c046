"""From the maps of a bottom-up network to the input of the recurrent decoder.

Spec of unified association, sections 2 and 3. Letters: N images, C channels, H x W cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mpn_d2.modeling.backbone.hourglass import GROUPS, Hourglass


class RunningNorm(nn.BatchNorm2d):
    """Batch norm that normalises by its running statistics while training, too.

    For batches of one image, whose own statistics are noise (paper: worth 2 %). The statistics go
    on being collected; the first batch sets them.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.collect(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    @torch.no_grad()
    def collect(self, x: torch.Tensor) -> None:
        """Takes a batch (N, C, H, W) into the running statistics."""
        self.num_batches_tracked += 1
        share = max(1.0 / float(self.num_batches_tracked), self.momentum)
        values = x.detach().float()
        var, mean = torch.var_mean(values, dim=(0, 2, 3), unbiased=False)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


class FeatureInput(nn.Module):
    """Normalised features; coarser, projected, with context and coordinates where wanted.

    The paper's network has the norm alone. With tags a decoder can tell people apart cell by cell;
    without them it must see all of an image to know whose turn it is: that is what context is for.
    """

    def __init__(
        self,
        channels: int,
        *,
        shrink: int = 1,
        norm: bool = True,
        project: int = 0,
        context: int = 0,
        context_norm: bool = False,
        coordinates: bool = False,
    ) -> None:
        """
        Args:
            channels: of the base's maps.
            shrink: cells a side that become one (their mean).
            norm: RunningNorm.
            project: channels of a 1x1 convolution with ReLU; 0: none.
            context: levels of an hourglass that sees the whole image; 0: none.
            context_norm: group norm behind its convolutions.
            coordinates: two further channels, x and y of the cell's centre, -1 to 1.

        Raises:
            ValueError: numbers below 0; names the key.
        """
        super().__init__()
        if context and context_norm and (project or channels) % GROUPS:
            raise ValueError(
                f"MODEL.SEQUENCE.CONTEXT_NORM: {project or channels} channels are no multiple of "
                f"{GROUPS}; choose another MODEL.SEQUENCE.PROJECT"
            )
        for key, value in (("PROJECT", project), ("CONTEXT", context)):
            if value < 0:
                raise ValueError(f"MODEL.SEQUENCE.{key} is {value}: 0 or more is needed")
        self.shrink, self.coordinates = shrink, coordinates
        # Statistics of about a hundred batches of one or two images: ten would go on changing.
        self.norm = RunningNorm(channels, momentum=0.01) if norm else None
        self.project = nn.Conv2d(channels, project, 1) if project else None
        if self.project is not None:
            nn.init.kaiming_normal_(self.project.weight, nonlinearity="relu")
            nn.init.zeros_(self.project.bias)
        width = project or channels
        self.context = Hourglass(context, width, 0, norm=context_norm) if context else None
        self.out_channels = (project or channels) + 2 * int(coordinates)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) -> (N, out_channels, H / shrink, W / shrink)."""
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        if self.norm is not None:
            x = self.norm(x)
        if self.project is not None:
            x = F.relu(self.project(x))
        if self.context is not None:
            x = x + self.context(x)
        if self.coordinates:
            count, _, height, width = x.shape
            rows = _centres(height, x)[:, None].expand(height, width)
            columns = _centres(width, x).expand(height, width)
            x = torch.cat([x, torch.stack([columns, rows]).expand(count, -1, -1, -1)], dim=1)
        return x


def _centres(count: int, like: torch.Tensor) -> torch.Tensor:
    """(count,) centres of equal cells from -1 to 1."""
    steps = torch.arange(count, device=like.device, dtype=like.dtype)
    return (2 * steps + 1) / count - 1
