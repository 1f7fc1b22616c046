"""Pull and push losses of associative embedding, as pure functions.

Newell, Huang, Deng, NIPS 2017, section 3.2; the normalisers are those of its code
(princeton-vl/pose-ae-train): squared distances to a person's mean tag, averaged over joints and
people, and exp(-d^2) of the mean tags of two people, averaged over pairs and halved.
"""

from __future__ import annotations

import torch

from mpn_d2.structures.outputs import TaggedJoints


def pull_and_push(
    tags: torch.Tensor, joints: list[TaggedJoints]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses that draw a person's tags together and those of two people apart.

    Args:
        tags: (N, K, H, W) predicted.
        joints: of each image, where the tags of whom are read.

    Returns:
        Two scalars, means over the images; an image without people counts as 0, one with a single
        person as 0 for the push.
    """
    tags = tags.float()
    pulls, pushes = [tags.sum() * 0], [tags.sum() * 0]
    for of_image, found in zip(tags, joints, strict=True):
        if len(found.owners) == 0:
            continue
        values = of_image[found.types, found.rows, found.columns]
        people = int(found.owners.max()) + 1
        count = torch.bincount(found.owners, minlength=people).to(values)
        means = values.new_zeros(people).index_add(0, found.owners, values) / count
        squares = (values - means[found.owners]).square()
        per_person = values.new_zeros(people).index_add(0, found.owners, squares) / count
        pulls.append(per_person.mean())
        if people > 1:
            gaps = (means[:, None] - means).square()
            # Without the people themselves, each of whom adds exp(0).
            close = torch.exp(-gaps).sum() - people
            pushes.append(0.5 * close / (people * (people - 1)))
    images = max(len(joints), 1)
    return torch.stack(pulls).sum() / images, torch.stack(pushes).sum() / images


def tagged_joints(
    keypoints: list[torch.Tensor], stride: int, size: tuple[int, int]
) -> list[TaggedJoints]:
    """Cells of the labelled joints of everybody who has any inside the maps.

    Args:
        keypoints: per image (P, K, 3) x, y, v; network-input pixels.
        stride: cell side.
        size: (H, W) of the maps in cells; joints outside of them are left out.
    """
    found = []
    for points in keypoints:
        cells = torch.floor(points[..., :2] / stride).long()
        inside = (cells >= 0) & (cells < cells.new_tensor([size[1], size[0]]))
        person, joint = torch.nonzero((points[..., 2] > 0) & inside.all(-1), as_tuple=True)
        # Numbered anew: people without a joint have no mean.
        _, owners = torch.unique(person, return_inverse=True)
        at = cells[person, joint]
        found.append(TaggedJoints(owners, joint, at[:, 1], at[:, 0]))
    return found
