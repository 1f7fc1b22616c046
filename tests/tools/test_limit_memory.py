"""Memory of the largest inputs: the tool's tables and refusals, the bounds in a small case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from repo_tools import load_tool

from mpn_d2.data import limits
from mpn_d2.data.people_file import load_people_file
from mpn_d2.engine import limit_memory as memory
from mpn_d2.engine.pose_predictor import PosePredictor
from mpn_d2.evaluation.results_file import load_results
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import read_results
from mpn_d2.utils.timing import in_fresh_process

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "docs" / "limits.md"


@pytest.fixture(scope="module")
def tool():
    return load_tool("limits")


def test_a_photograph_stays_under_its_bound(tool, tmp_path):
    """24 megapixels, measured as the tool does it, above what a small image takes."""
    args = tool.parse_args(["--image", "6000", "4000", "--output", str(tmp_path / "r.json")])
    small, large = tool.measure_image(args, tmp_path).values()
    pixels = 6000 * 4000 - 1500 * 1000
    grown = (large - small) * memory.MIB / pixels
    # At least the image as read and its person mask; a second look at all of it would be too much.
    assert 3 + 4 < grown < memory.BYTES_PER_PIXEL
    assert large < memory.image_bound_mib(6000 * 4000)
    assert (tmp_path / "drawn.png").is_file()


def test_annotations_and_results_stay_under_their_bound(tool, tmp_path):
    files = [str(tmp_path / f"{i}.json") for i in range(2)]
    sizes = [memory.write_annotations(f, n) for f, n in zip(files, (40, 8000), strict=True)]
    small, large = in_fresh_process(memory.annotations_mib, files)
    grown = (large - small) * memory.MIB / (sizes[1] - sizes[0])
    assert 1 < grown < memory.BYTES_PER_JSON_BYTE
    assert large < memory.json_bound_mib(sizes[1])


def test_what_is_written_can_be_read_and_scored(tmp_path):
    people, rows = str(tmp_path / "people.json"), str(tmp_path / "rows.json")
    assert memory.write_annotations(people, 9, per_image=4) == Path(people).stat().st_size
    assert memory.write_rows(rows, 9) == Path(rows).stat().st_size
    coco = get_skeleton("coco")
    assert [len(d["annotations"]) for d in load_people_file(people, coco)] == [4, 4, 1]
    evaluator, found = load_results(rows, people, coco)
    assert len(found.rows["bbox"]) == len(found.rows["keypoints"]) == 9
    assert set(evaluator.score_rows(found.rows)) == {"bbox", "keypoints"}


def test_page_names_the_limits_and_bounds():
    text = PAGE.read_text()
    for number in (limits.MOST_SIDE, limits.MOST_PEOPLE, limits.MOST_JSON_BYTES):
        assert f"{number:,}" in text
    assert f"{limits.most_pixels():,.0f}" in text
    assert f"1 GiB and {memory.BYTES_PER_PIXEL} bytes a pixel" in " ".join(text.split())
    of_json = f"1 GiB and {memory.BYTES_PER_JSON_BYTE} bytes for each byte"
    assert of_json in " ".join(text.split()) and memory.BASE_MIB == 1024


def test_page_shows_the_figures_and_they_keep_the_bounds(tool):
    results = read_results(tool.RESULTS)
    assert results, "no figures: make limits measures them"
    for name, table in tool.tables(results).items():
        assert f"<!-- table {name} -->\n{table}\n<!-- end {name} -->" in PAGE.read_text(), name
    metrics = results["metrics"]
    promised = tool.bounds(metrics)
    assert len(promised) == 6 and all(metrics[key] <= most for key, most in promised.items())
    # A video costs no more for being longer.
    short, long = (v for k, v in metrics.items() if k.startswith("peak_mib/video"))
    assert long < short + 64


def test_figures_over_their_bound_are_an_error(tool, monkeypatch, tmp_path):
    most = 1024 + memory.BYTES_PER_PIXEL * 1e6 / memory.MIB
    figures = {"peak_mib/image/1000x1000": most + 1}
    monkeypatch.setattr(tool, "measure_image", lambda args, folder: figures)
    output = tmp_path / "r.json"
    args = tool.parse_args(["--only", "image", "--output", str(output)])
    with pytest.raises(ValueError, match="more memory than .* promises: peak_mib/image/1000x1000"):
        tool.main(args)
    assert json.loads(output.read_text())["metrics"] == figures
    figures["peak_mib/image/1000x1000"] = most - 1
    tool.main(args)


def test_tables_and_arguments(tool, capsys):
    metrics = {
        "peak_mib/image/2000x1000": 1500.4,
        "bytes/annotations/10": 2e6,
        "peak_mib/annotations/10": 700.0,
        "peak_mib/people/1000": 2000.0,
        "peak_mib/video/200": 600.6,
    }
    tables = tool.tables({"metrics": metrics})
    bound = 1024 + memory.BYTES_PER_PIXEL * 2e6 / 2**20
    assert tables["image"].splitlines()[-1] == f"| 2,000 x 1,000 | 2.0 | 1,500 | {bound:,.0f} |"
    bound = 1024 + memory.BYTES_PER_JSON_BYTE * 2e6 / 2**20
    assert tables["files"].splitlines()[2:] == [
        f"| annotations, 10 people | 2.0 | 700 | {bound:,.0f} |"
    ]
    assert tables["people"].splitlines()[-1] == "| 1,000 | 2,000 |"
    assert tables["video"].splitlines()[-1] == "| 200 | 601 |"
    for wrong, words in (
        (["--frames", "0"], "at least 1"),
        (["--only", "video"], "name another --output"),
    ):
        with pytest.raises(SystemExit):
            tool.parse_args(wrong)
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="--image is larger than 179 megapixels"):
        tool.main(tool.parse_args(["--image", "50000", "50000"]))
    with pytest.raises(ValueError, match="--people is 1001: at most 1,000"):
        tool.main(tool.parse_args(["--people", "1001"]))


def test_arrays_are_refused_like_files(tmp_path, monkeypatch):
    """By the array's shape: nothing of the network is needed to answer."""
    from mpn_d2.engine.predictor import ImagePredictor

    predictor = PosePredictor.__new__(PosePredictor)
    predictor._input_format = "RGB"
    predictor._predict = ImagePredictor.__new__(ImagePredictor)
    thin = np.zeros((1, 65_536, 3), np.uint8)
    with pytest.raises(ValueError, match=r"65536 x 1 pixels has a side of more than 65,535"):
        predictor(thin)
    # No memory behind it: a view of one pixel.
    large = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 20_000, 3))
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels is larger than 179 megapixels"):
        predictor(large)
