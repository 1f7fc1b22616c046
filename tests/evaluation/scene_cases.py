"""Annotated people for tests of assembly without images: COCO content, pixel indices."""

from __future__ import annotations

from mpn_d2.structures.skeleton import get_skeleton

K = get_skeleton("coco").num_keypoints
SIDES = (101, 203)


def person(image_id, x=10, y=20, sides=SIDES, joints=K, **fields):
    """Somebody with `joints` labelled keypoints, spread over the box, none in another's cell."""
    width, height = sides
    keypoints = []
    for k in range(K):
        place = [x + (k % 4) * width // 4 + 9, y + (k // 4) * height // 5 + 11, 2]
        keypoints += place if k < joints else [0, 0, 0]
    return {
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [x, y, width, height],
        "area": width * height / 2,
        "keypoints": keypoints,
        "num_keypoints": joints,
        **fields,
    }


def coco(people, images=3, size=(900, 700)):
    """COCO content of images 1, 2, ..., which hold these people."""
    width, height = size
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height}
            for i in range(1, images + 1)
        ],
        "annotations": [{**p, "id": i} for i, p in enumerate(people, start=1)],
        "categories": [
            {
                "id": 1,
                "name": "person",
                "keypoints": list(get_skeleton("coco").keypoint_names),
                "skeleton": [],
            }
        ],
    }
