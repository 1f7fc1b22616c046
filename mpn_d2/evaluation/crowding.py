"""CrowdPose's split of images by crowding, 0 to 1 (`crowdIndex` of its annotation files)."""

from __future__ import annotations

from pycocotools.cocoeval import COCOeval


def images_by_crowding(images: list[dict]) -> dict[str, list[int]]:
    """Metric name to image ids: AP_easy [0, 0.1), AP_medium [0.1, 0.8], AP_hard (0.8, 1].

    Bounds: design 7.9. Each metric is COCO's AP (mean over OKS 0.50 to 0.95, people of all sizes)
    on these images alone; CrowdPose's own code ranks the predictions of a part in the same way,
    but reports no AP by size.

    Args:
        images: of a COCO file; those without `crowdIndex` are in none.

    Returns:
        empty where no image has a `crowdIndex`.
    """
    known = {i["id"]: i["crowdIndex"] for i in images if i.get("crowdIndex") is not None}
    if not known:
        return {}
    return {
        "AP_easy": [i for i, crowding in known.items() if crowding < 0.1],
        "AP_medium": [i for i, crowding in known.items() if 0.1 <= crowding <= 0.8],
        "AP_hard": [i for i, crowding in known.items() if crowding > 0.8],
    }


def average_precision(scorer: COCOeval) -> float:
    """COCO's AP in percent of an accumulated evaluation; NaN without ground truth."""
    precision = scorer.eval["precision"][:, :, :, scorer.params.areaRngLbl.index("all"), -1]
    found = precision[precision > -1]
    return float(100 * found.mean()) if found.size else float("nan")
