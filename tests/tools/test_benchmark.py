"""The benchmark, small: figures that can be checked, and a file that holds them."""

from __future__ import annotations

import json

import pytest
import torch

from mpn_d2.engine import data_speed, inference_speed, pipeline_speed, rcnn_speed, speed_reference
from mpn_d2.engine.assembly_speed import crowd
from tools import benchmark

CONFIG = "configs/MultiPoseNet/R_18_small.yaml"
SMALL = ["--size", "64", "--images", "3", "--passes", "1", "--batch-size", "2"]
SMALL += ["--iterations", "1", "--memory-batch-size", "1"]
OPTIONS = ["DATASETS.TRAIN", "('coco_sample_train',)", "MODEL.DEVICE", "cpu"]


def test_figures_of_the_data_part(tmp_path, sample_dir, capsys) -> None:
    config = str(sample_dir.parents[1] / CONFIG)
    output = tmp_path / "figures" / "data.json"
    arguments = ["--config-file", config, "--output", str(output), *SMALL, *OPTIONS]
    arguments = ["--part", "data", *arguments]
    benchmark.main(benchmark.parse_args(arguments))
    written = json.loads(output.read_text())
    figures = written["metrics"]
    assert written["device"] == "cpu" and written["seconds"] > 0
    assert figures["data/images_per_second"] > 1
    # One core cannot do more by the wall clock than by its own.
    assert figures["data/images_per_cpu_second"] >= 0.9 * figures["data/images_per_second"]
    share = 100 * figures["data/target_seconds"] / figures["data/iteration_seconds"]
    assert figures["data/target_percent"] == pytest.approx(share)
    assert 0 < share < 50
    # PyTorch alone takes about 300 MiB; this process, which is larger, does not count.
    assert 200 < figures["peak_mib/keypoint_stage"] < 4000
    assert "peak_mib/keypoint_stage" in capsys.readouterr().out


def test_settings_are_those_of_the_crop_recipe(sample_dir) -> None:
    from mpn_d2.config import load_config

    config = str(sample_dir.parents[1] / CONFIG)
    arguments = ["--part", "data", "--config-file", config, "--output", "unused", *SMALL, *OPTIONS]
    args = benchmark.parse_args(arguments)
    seen = []

    def note(cfg, *rest) -> dict:
        seen.append(cfg)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_loader_speed", "_target_share"):
            patch.setattr(data_speed, name, note)
        patch.setattr(data_speed, "in_fresh_process", lambda function, text: 7.0)
        figures = benchmark.of_data(args, load_config(config, args.opts))
    assert figures == {"peak_mib/keypoint_stage": 7.0}
    assert [cfg.SOLVER.IMS_PER_BATCH for cfg in seen] == [1, 2]
    for cfg in seen:
        assert (cfg.INPUT.AUGMENTATION, cfg.INPUT.CROP_SIZE) == ("crop", 64)
        assert list(cfg.MODEL.TRAIN_PARTS) == ["keypoint"]


def test_figures_of_the_assembly_part(tmp_path, sample_dir) -> None:
    config = str(sample_dir.parents[1] / "configs/MultiPoseNet/UCR_poses.yaml")
    output = tmp_path / "assembly.json"
    arguments = ["--config-file", config, "--part", "assembly", "--output", str(output)]
    arguments += ["--people", "8", "--passes", "1", "--repeats", "2", *OPTIONS]
    # The published PRN takes seconds to make.
    arguments += ["SOLVER.IMS_PER_BATCH", "4", "MODEL.PRN.CROP", "(14, 9)"]
    benchmark.main(benchmark.parse_args(arguments))
    figures = json.loads(output.read_text())["metrics"]
    times = {f"assembly/seconds/{kind}/{n}" for kind in ("prn", "ucr") for n in (20, 100)}
    times.add("assembly/seconds/prn_products/20")
    speeds = {"assembly/people_per_second", "assembly/people_per_cpu_second"}
    assert set(figures) == times | speeds
    assert all(value > 0 for value in figures.values())
    assert figures["assembly/people_per_second"] > 50


def test_a_crowd_stands_as_real_ones_do() -> None:
    full = torch.rand(1, 17, 3) + torch.tensor([0.0, 0.0, 1.0])
    few = full.clone()
    few[:, 2:, 2] = 0.0
    keypoints = torch.cat([few, full * torch.tensor([10.0, 20.0, 1.0])])
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 10.0, 20.0]])
    samples = [
        {"image_id": 3, "keypoints": few, "owner": 0, "box": boxes[0] + 7},
        *[{"image_id": 8, "keypoints": keypoints, "owner": i, "box": boxes[i]} for i in (0, 1)],
    ]
    candidates, placed = crowd(samples, 5)
    # The image of two, the image of one, and again: side by side, nobody between.
    assert placed[:, 0].tolist() == [0, 0, 10, 11, 11]
    assert placed[:, 2].tolist() == [1, 10, 11, 12, 21]
    # Persons come by their number of joints: 17, 2, 2, 17, 2.
    assert torch.bincount(candidates.types).tolist() == [5, 5] + [2] * 15
    first = candidates.points[:17]
    torch.testing.assert_close(first, full[0, :, :2])
    torch.testing.assert_close(candidates.points[21:38], torch.tensor([11.0, 0.0]) + full[0, :, :2])


def test_a_count_of_none_is_refused(tmp_path) -> None:
    args = benchmark.parse_args(["--config-file", "x", "--output", "y", "--batch-size", "0"])
    with pytest.raises(ValueError, match="--batch-size must be at least 1"):
        benchmark.main(args)


def test_figures_of_the_inference_part(tmp_path, sample_dir, monkeypatch) -> None:
    config = str(sample_dir.parents[1] / CONFIG)
    output = tmp_path / "inference.json"
    # The large photograph has a process of its own, and minutes.
    asked = []

    def mib(function, config: str, weights: str) -> float:
        asked.append((function.__name__, weights.endswith(".pth")))
        return 7.0

    monkeypatch.setattr(inference_speed, "in_fresh_process", mib)
    arguments = ["--config-file", config, "--part", "inference", "--output", str(output)]
    arguments += ["--repeats", "3", *OPTIONS, "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "96"]
    benchmark.main(benchmark.parse_args(arguments))
    figures = json.loads(output.read_text())["metrics"]
    assert asked == [("_tiling_mib", True)] and figures.pop("peak_mib/tiling_4000x3000") == 7.0
    assert set(figures) == {
        *("inference/seconds/peaks/200", "inference/seconds/plain", "inference/seconds/flip"),
        "inference/ratio/flip",
    }
    seconds = {name: figures[f"inference/seconds/{name}"] for name in ("plain", "flip")}
    assert figures["inference/ratio/flip"] == pytest.approx(seconds["flip"] / seconds["plain"])
    assert all(value > 0 for value in figures.values())


def test_figures_of_the_heads_part(tmp_path, sample_dir, monkeypatch) -> None:
    monkeypatch.setattr(rcnn_speed, "_BOX", (12.0, 24.0))
    config = str(sample_dir.parents[1] / "configs/MultitaskRCNN/quick_overfit_two.yaml")
    output = tmp_path / "heads.json"
    arguments = ["--config-file", config, "--part", "heads", "--output", str(output)]
    arguments += ["--repeats", "1", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8, 8)"]
    benchmark.main(benchmark.parse_args(arguments))
    figures = json.loads(output.read_text())["metrics"]
    kinds = ("none", "conv", "heatmap", "both")
    seconds = {kind: figures.pop(f"heads/seconds/{kind}/20") for kind in kinds}
    assert all(value > 0 for value in seconds.values())
    for kind in kinds[1:]:
        ratio = figures.pop(f"heads/ratio/{kind}/20")
        assert ratio == pytest.approx(seconds[kind] / seconds["none"])
    assert not figures


PIPELINE = ["--modes", "plain", "fp32", "--persons", "0", "3", "--size", "64", "--rounds", "2"]
LITE = "configs/MultiPoseNet/Lite_R_18.yaml"


def test_figures_of_the_systems_part(tmp_path, sample_dir, monkeypatch) -> None:
    configs = sample_dir.parents[1] / "configs"
    own, other = (str(configs / x / "R_18_small.yaml") for x in ("MultiPoseNet", "PoseRegression"))
    seen = {}

    def measured(found: dict, **settings: object) -> dict[str, float]:
        seen.update(settings, names={k: cfg.MODEL.META_ARCHITECTURE for k, cfg in found.items()})
        return {"systems/ratio/a/1": 0.5}

    monkeypatch.setattr(benchmark, "measure_systems", measured)
    arguments = ["--config-file", own, "--output", str(tmp_path / "a.json"), "--size", "64"]
    arguments += ["--part", "systems", "--persons", "1", "3", "--rounds", "2"]
    benchmark.main(benchmark.parse_args([*arguments, "--beside", other]))
    assert seen.pop("names") == {
        "MultiPoseNet.R_18_small": "MultiPoseNet",
        "PoseRegression.R_18_small": "PoseRegression",
    }
    assert seen == {"persons": [1, 3], "size": 64, "rounds": 2}
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == {"systems/ratio/a/1": 0.5}
    for further, words in (
        (["--beside", own], "--beside names a config twice"),
        (["--beside", other, "--part", "heads"], "--beside is for part systems, not heads"),
        (["--persons", "-1"], "--persons needs numbers of people"),
    ):
        with pytest.raises(ValueError, match=words):
            benchmark.main(benchmark.parse_args([*arguments, *further]))


def test_figures_of_the_pipeline(tmp_path, sample_dir, capsys, monkeypatch) -> None:
    asked = []

    def mib(function, config: str, against: str, mode: str, count: int, *rest: int) -> float:
        asked.append((function.__name__, against, mode, count))
        return 7.0

    monkeypatch.setattr(pipeline_speed, "in_fresh_process", mib)
    monkeypatch.setattr(pipeline_speed, "matmul_gflops", lambda dtype, device: 50.0)
    monkeypatch.setattr(speed_reference, "PROPOSALS", 20)
    output, plot = tmp_path / "b.json", tmp_path / "b.png"
    arguments = ["--config-file", str(sample_dir.parents[1] / LITE), "--output", str(output)]
    arguments += ["--plot", str(plot), "--sizes", "96", "--against", "keypoint_rcnn"]
    arguments += [*PIPELINE, *OPTIONS, "INPUT.MIN_SIZE_TEST", "64"]
    benchmark.main(benchmark.parse_args(arguments))
    figures = json.loads(output.read_text())["metrics"]
    shown = capsys.readouterr().out
    for count in (0, 3):
        base = figures[f"seconds/keypoint_rcnn/{count}/plain"]
        for mode in ("plain", "fp32"):
            own = figures[f"seconds/Lite_R_18/{count}/{mode}"]
            assert figures[f"ratio/{count}/{mode}"] == pytest.approx(own / base)
            assert figures[f"spread_percent/Lite_R_18/{count}/{mode}"] >= 0
            assert f"{own:.3f} s ({own / base:.3f})" in shown
    assert figures["size_seconds/keypoint_rcnn/96/plain"] > 0
    steps = [name.split("/")[2] for name in figures if name.startswith("step_seconds/3/")]
    assert steps == ["plain", "fold", "low_resolution", "channels_last"]
    # Parts make up a pass; what is convolved before it is upsampled is less work.
    parts = {n: v for n, v in figures.items() if n.startswith("part_seconds/") and "/3/plain" in n}
    assert len(parts) == 9 and all(value > -1e-4 for value in parts.values())
    assert figures["gflops/keypoint_head/fp32"] < figures["gflops/keypoint_head/plain"]
    assert figures["gflops/backbone/fp32"] == figures["gflops/backbone/plain"]
    assert asked == [
        ("_peak", "", "plain", 3),
        ("_peak", "", "fp32", 3),
        ("_peak", "keypoint_rcnn", "plain", 3),
    ]
    assert figures["peak_mib/Lite_R_18/3/fp32"] == figures["peak_mib/keypoint_rcnn/3/plain"] == 7
    for name in ("loader", "training_step", "drawing/3"):
        assert figures[f"part_seconds/{name}"] > 0
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_systems_take_turns_and_the_first_turn_does_not_count() -> None:
    """What else the machine does hits them alike."""
    order: list[tuple[str, int, int]] = []

    def runner(name: str) -> pipeline_speed.Runner:
        def run(inputs: list[dict], people: object) -> list[dict]:
            order.append((name, len(inputs), len(people)))
            return []

        return pipeline_speed.Runner(name, "plain", run)

    settings = pipeline_speed.Settings("a", [2], rounds=3, batch=2)
    times = pipeline_speed.times_in_turns([runner("a"), runner("b")], settings, 2, 64)
    assert order == [("a", 2, 2), ("b", 2, 2)] * 4
    assert {key: len(values) for key, values in times.items()} == {
        ("a", "plain"): 3,
        ("b", "plain"): 3,
    }


def test_operations_and_parameters_are_counted_right(sample_dir) -> None:
    from mpn_d2.config import load_config
    from mpn_d2.engine.build import build_pose_model
    from mpn_d2.engine.part_speed import part_gflops, part_parameters

    cfg = load_config(str(sample_dir.parents[1] / LITE), [*OPTIONS])
    model = build_pose_model(cfg).eval()
    inputs = pipeline_speed.inputs_of(64, 1)
    with torch.no_grad():
        counted = part_gflops(model, lambda: model(inputs))
    # By hand: per level two 3x3 convolutions (64 to 32, 32 to 32), smoothing of 4 x 32 to 64, the
    # maps by 1x1.
    cells = [16 * 16, 8 * 8, 4 * 4, 2 * 2]
    macs = sum(cells) * 9 * (64 * 32 + 32 * 32) + 256 * (9 * 128 * 64 + 64 * 18)
    assert counted["keypoint_head"] == pytest.approx(2 * macs / 1e9)
    total = sum(p.numel() for p in model.parameters())
    assert sum(part_parameters(model).values()) == total


def test_photographs_that_are_missing_end_it_before_it_begins(sample_dir, monkeypatch) -> None:
    from mpn_d2.config import load_config
    from mpn_d2.engine import part_speed

    cfg = load_config(str(sample_dir.parents[1] / LITE), [*OPTIONS])
    missing = [{"file_name": "/no/photo.jpg"}]
    monkeypatch.setattr(part_speed, "load_pose_dicts", lambda *names, **how: missing)
    settings = pipeline_speed.Settings("lite", [2], size=64, modes=["plain"], rounds=1)
    monkeypatch.setattr(pipeline_speed, "times_in_turns", None)
    with pytest.raises(ValueError, match="/no/photo.jpg is missing"):
        pipeline_speed.measure_pipeline(cfg, settings)


def test_one_core_is_one_thread_of_both() -> None:
    import cv2

    from mpn_d2.utils.timing import one_core

    before = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(2)
    with one_core():
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (before[0], 2)
    cv2.setNumThreads(before[1])


def test_memory_is_measured_for_the_network_and_the_other(sample_dir, monkeypatch) -> None:
    from mpn_d2.config import load_config

    cfg = load_config(str(sample_dir.parents[1] / LITE), [*OPTIONS])
    assert 200 < pipeline_speed._peak(cfg.dump(), "", "fp32", 3, 64, 2) < 8000
    seen = []

    class Other:
        def __init__(self, name: str, device: str) -> None:
            seen.append((name, device))

        def __call__(self, inputs: list[dict], boxes: torch.Tensor) -> None:
            seen.append((len(inputs), tuple(inputs[0]["image"].shape), tuple(boxes.shape)))

    monkeypatch.setattr(pipeline_speed, "TopDown", Other)
    assert pipeline_speed._peak(cfg.dump(), "keypoint_rcnn", "plain", 3, 64, 2) > 200
    assert seen == [("keypoint_rcnn", "cpu"), *[(2, (3, 64, 64), (3, 4))] * 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "quick"], "--modes quick: choose of plain, fp32"),
        (["--persons", "-1"], "--persons needs numbers of people"),
        (["--size", "70"], "images of 70 pixels: a multiple of 32"),
        (["--size", "64", "--sizes", "96", "70"], "images of 70 pixels: a multiple of 32"),
        (["--sizes", "0"], "--size and --sizes need sides of images"),
        (["--part", "data", "--plot", "p.png"], "--plot shows part pipeline"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments, message, sample_dir, tmp_path, monkeypatch
) -> None:
    config = str(sample_dir.parents[1] / LITE)
    given = ["--config-file", config, "--output", str(tmp_path / "b.json"), "--no-details"]
    args = benchmark.parse_args(["--modes", "plain", *arguments, *given, *OPTIONS])

    def measured(*settings: object) -> None:
        raise AssertionError("nothing is to be measured before all is checked")

    monkeypatch.setattr(pipeline_speed, "times_in_turns", measured)
    with pytest.raises(ValueError, match=message):
        benchmark.main(args)
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("output", "plot", "message"),
    [
        (".", None, "--output . is a folder: name a file"),
        ("file/b.json", None, "folder file cannot be made"),
        ("b.json", ".", "--plot . is a folder: name a file"),
        ("b.json", "file/b.png", "folder file cannot be made"),
        ("b.json", "./b.json", "--plot ./b.json would overwrite --output"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_all(
    output, plot, message, sample_dir, tmp_path, monkeypatch
) -> None:
    """Not after hours, with the figures lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(benchmark, "load_config", None)
    given = ["--config-file", "any.yaml", "--output", output, *(["--plot", plot] if plot else [])]
    with pytest.raises((ValueError, OSError), match=message):
        benchmark.main(benchmark.parse_args(given))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_mode_that_the_machine_lacks_is_not_available(monkeypatch, sample_dir) -> None:
    from mpn_d2.config import load_config

    cfg = load_config(str(sample_dir.parents[1] / LITE), [*OPTIONS])
    lacks = {"half": "this processor does not compute in bfloat16"}
    monkeypatch.setattr(pipeline_speed, "unavailable", lambda mode, *rest: lacks.get(mode, ""))
    settings = pipeline_speed.Settings(
        "lite", [2], size=64, modes=["plain", "half"], rounds=1, details=False
    )
    figures = pipeline_speed.measure_pipeline(cfg, settings)
    assert figures["seconds/lite/2/half"] is None and figures["seconds/lite/2/plain"] > 0
    assert not any(name.startswith("ratio/") for name in figures)
