"""An assembler on degraded keypoints and boxes: one kind of damage after the other."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from mpn_d2.data.association_noise import Noise
from mpn_d2.evaluation.assembly import assemble_scenes
from mpn_d2.evaluation.error_budget import promises_one_to_one
from mpn_d2.evaluation.people_scorer import PeopleScorer
from mpn_d2.evaluation.scenes import annotated_scenes, owner_share
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import format_figure

# One kind of damage each, as much as their names say: per cent, or COCO sigmas.
NOISE_ROWS = {
    "clean": Noise(),
    "boxes_5": Noise(box=0.05),
    "boxes_10": Noise(box=0.1),
    "missing_10": Noise(missing=0.1),
    "missing_20": Noise(missing=0.2),
    "false_10": Noise(false=0.1),
    "false_20": Noise(false=0.2),
    "position_0.5": Noise(position=0.5),
    "position_1": Noise(position=1.0),
}
NOISE_SEED = 7


def noise_table(
    cfg: CfgNode,
    assembler: nn.Module,
    dataset_dicts: list[dict],
    dataset_name: str,
    *,
    filter_boxes: bool = False,
) -> dict[str, float | None]:
    """AP and share of joints given to their owner of each row of NOISE_ROWS, printed in Markdown.

    Args:
        cfg: MODEL.SKELETON.
        assembler: to be tried.
        dataset_dicts: annotations of all images of the dataset.
        dataset_name: registered.
        filter_boxes: see `annotated_scenes`.

    Returns:
        {"noise/<row>/AP": 0 to 100, "noise/<row>/owner_share": 0 to 100}; None where not defined.
    """
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    scorer = PeopleScorer(dataset_name, skeleton.sigmas)
    figures: dict[str, float | None] = {}
    print("\n| | AP | to their owner, % |\n|---|---|---|")
    for name, noise in NOISE_ROWS.items():
        scenes = annotated_scenes(
            dataset_dicts,
            skeleton.num_keypoints,
            filter_boxes=filter_boxes,
            noise=noise,
            sigmas=skeleton.sigmas,
            seed=NOISE_SEED,
        )
        poses = assemble_scenes(assembler, scenes, one_to_one=promises_one_to_one(assembler))
        row = {"AP": scorer.score(scenes, poses), "owner_share": owner_share(scenes, poses)}
        print(f"| {name} | {' | '.join(map(format_figure, row.values()))} |", flush=True)
        figures |= {f"noise/{name}/{key}": value for key, value in row.items()}
    return figures
