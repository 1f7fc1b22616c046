"""Writes image_to_poses.ipynb beside this file, executed: its text and code stand here.

    make demo && python docs/examples/make_notebook.py

The notebook runs on the network that `make demo` leaves; MPN_WEIGHTS names another checkpoint of
configs/quick/demo.yaml. Pictures in it are of the bundled photographs (datasets/coco_sample).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = Path(__file__).with_name("image_to_poses.ipynb")

CELLS = [
    """# From an image to poses

What lies between a photograph and its people: heatmaps, person mask, candidates, boxes, the
evidence of the Pose Residual Network (PRN), the assignment. The network is the one of `make demo`:
it knows seven photographs by heart, one of which is used here.""",
    '''import os
from pathlib import Path

import numpy as np
from PIL import Image

# The repository: the folder of configs/ and datasets/.
root = next(x for x in (Path.cwd(), *Path.cwd().parents) if (x / "datasets/coco_sample").is_dir())
config = "quick/demo.yaml"
weights = os.environ.get("MPN_WEIGHTS", root / "output/demo/model_final.pth")
photo = root / "datasets/coco_sample/train/000000000790.jpg"


def show(*pictures):
    """Pictures (H, W, 3) side by side, at the height of the lowest."""
    height = min(x.shape[0] for x in pictures)
    images = [Image.fromarray(x) for x in pictures]
    images = [x.resize((round(x.width * height / x.height), height)) for x in images]
    return Image.fromarray(np.hstack([np.asarray(x) for x in images]))''',
    """## People in three lines
`PosePredictor` takes a config by its name and a checkpoint.""",
    """from mpn_d2 import PosePredictor

predictor = PosePredictor(config, weights, heatmaps=True)
people = predictor(photo)
print(f"{len(people)} people; keypoints {people.keypoints.shape}: x, y, score of", end=" ")
print(", ".join(people.keypoint_names[:4]), "...")""",
    """image = np.asarray(Image.open(photo).convert("RGB"))
show(people.draw(image))""",
    """## Heatmaps and mask
The keypoint subnet makes one map a keypoint type, and one for all people together. On the left the
strongest map at each place, on the right the mask.""",
    """mask = (255 * people.person_mask).clip(0, 255).astype(np.uint8)
show(people.draw_heatmaps(image), np.asarray(Image.fromarray(mask).convert("RGB")))""",
    """One map by itself, the left shoulders' of everybody:""",
    """kind = people.keypoint_names.index("left_shoulder")
shoulders = people.heatmaps[kind]
print(f"a cell is {image.shape[0] / shoulders.shape[0]:.1f} pixels of the photograph")
grey = Image.fromarray((255 * shoulders.clip(0, 1)).astype(np.uint8))
show(np.asarray(grey.resize(image.shape[1::-1]).convert("RGB")))""",
    """## Candidates
Peaks of the maps are keypoint candidates: places with a type and a score, and nobody's yet.""",
    """import torch

from mpn_d2.codecs.heatmap import decode_heatmaps

cfg = predictor.cfg
maps = torch.from_numpy(people.heatmaps)[None]
peaks = cfg.MODEL.PEAKS
(candidates,) = decode_heatmaps(maps, 4, peaks.THRESH, peaks.MAX_PER_TYPE)
for kind, name in enumerate(people.keypoint_names[:6]):
    print(f"{name}: {int((candidates.types == kind).sum())}")""",
    """## Who owns what: evidence and assignment
The assembler gets candidates and boxes, never the image. So that it alone is judged, it gets the
annotated keypoints and boxes here. The PRN sees the candidates of a box on a grid of 56 x 36 cells
and marks on such a grid where this person's joints should be.""",
    """from mpn_d2.data.people_file import load_people_file
from mpn_d2.engine.assignment import assign
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.evaluation.scenes import annotated_scenes

file = root / "datasets/coco_sample/annotations/person_keypoints_train.json"
dicts = load_people_file(str(file), predictor.skeleton)
scenes = annotated_scenes(dicts, predictor.skeleton.num_keypoints)
scene = next(x for x in scenes if x.image_id == int(photo.stem))
assembler = build_inference_model(cfg, str(weights)).assembler
assignment = assign(assembler, scene)
print(f"{len(scene.candidates)} candidates, {len(scene.boxes)} boxes; evidence", end=" ")
print(tuple(assignment.grids.shape), "(boxes, keypoint types, rows, columns)")""",
    """Above, all candidates and boxes, and who got what (red: somebody else's joint). Below, the
grid of each box: bright where the PRN expects this person's joints, ringed what the box got.""",
    """from mpn_d2.utils.assignment_picture import draw_assignment

Image.fromarray(draw_assignment(image, assignment, predictor.skeleton))""",
    """`assignment.pair_scores` is the evidence in numbers, a row a box and a column a candidate; a
matching (`MODEL.ASSEMBLER.MATCHING`) makes the decision from it.""",
    """scores = assignment.pair_scores
print(scores.shape)
for row in range(min(2, len(scores))):
    best = scores[row].argmax()
    name = people.keypoint_names[scene.candidates.types[best]]
    place = scene.candidates.points[best].numpy().round(1)
    print(f"box {row}: the surest candidate is a {name} at {place}")""",
    """## Into files
Rows of COCO's results format, which `pycocotools` loads:""",
    """people.to_coco(image_id=int(photo.stem))[:1]""",
]


def notebook() -> nbformat.NotebookNode:
    """The notebook, not executed. Cells of code begin with no heading and no sentence."""
    cells = []
    for number, text in enumerate(CELLS):
        new = nbformat.v4.new_code_cell if is_code(text) else nbformat.v4.new_markdown_cell
        cells.append(new(text, id=f"cell-{number}"))
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=about)


def is_code(text: str) -> bool:
    try:
        compile(text, "cell", "exec")
    except SyntaxError:
        return False
    return True


def execute(content: nbformat.NotebookNode, folder: Path = REPO) -> nbformat.NotebookNode:
    """Runs all cells in a folder; a CellExecutionError where one fails."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        x for x in (str(REPO), os.environ.get("PYTHONPATH")) if x
    )
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    client = NotebookClient(content, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in content.cells:
        cell.metadata.pop("execution", None)  # times of day
        if "outputs" in cell:  # what Detectron2 warns of is no result
            cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
    return content


if __name__ == "__main__":
    done = execute(notebook())
    partial = NOTEBOOK.with_suffix(".partial")
    nbformat.write(done, partial)
    partial.replace(NOTEBOOK)
    print(f"{NOTEBOOK}: written")
    sys.exit()
