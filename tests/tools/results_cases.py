"""Results for tests of tools that read them: the truth of the bundled photographs, made worse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SAMPLE = Path(__file__).resolve().parents[2] / "datasets" / "coco_sample"
ANNOTATIONS = SAMPLE / "annotations" / "person_keypoints_val.json"


def noisy_rows(seed: int = 3) -> list[dict]:
    """Most people, joints and boxes moved, in any order; and two people who are nobody."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in json.loads(ANNOTATIONS.read_text())["annotations"]:
        if not person["num_keypoints"] or rng.random() < 0.2:
            continue
        keypoints = np.array(person["keypoints"], dtype=float).reshape(-1, 3)
        given = keypoints[:, 2] > 0
        spread = 0.05 * np.sqrt(person["area"])
        keypoints[given, :2] += rng.normal(0, spread, (given.sum(), 2))
        keypoints[:, 2] = given
        rows.append(
            {
                "image_id": person["image_id"],
                "category_id": 1,
                "bbox": [v + float(rng.normal(0, spread)) for v in person["bbox"]],
                "keypoints": keypoints.reshape(-1).tolist(),
                "score": float(rng.random()),
            }
        )
    rows += [
        {**row, "keypoints": [v + 60 * (v > 1) for v in row["keypoints"]], "score": 0.99}
        for row in rows[:2]
    ]
    rng.shuffle(rows)
    return rows
