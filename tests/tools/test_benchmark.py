"""The benchmark's part `data`, small: figures that can be checked, and a file that holds them."""

from __future__ import annotations

import json

import pytest
import torch

from mpn_d2.engine import inference_speed
from tools import benchmark

CONFIG = "configs/MultiPoseNet/R_18_small.yaml"
SMALL = ["--size", "64", "--images", "3", "--passes", "1", "--batch-size", "2"]
SMALL += ["--iterations", "1", "--memory-batch-size", "1"]
OPTIONS = ["DATASETS.TRAIN", "('coco_sample_train',)", "MODEL.DEVICE", "cpu"]


def test_figures_of_the_data_part(tmp_path, sample_dir, capsys) -> None:
    config = str(sample_dir.parents[1] / CONFIG)
    output = tmp_path / "figures" / "data.json"
    arguments = ["--config-file", config, "--output", str(output), *SMALL, *OPTIONS]
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
    arguments = ["--config-file", config, "--output", "unused", *SMALL, *OPTIONS]
    args = benchmark.parse_args(arguments)
    seen = []

    def note(cfg, *rest) -> dict:
        seen.append(cfg)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_loader_speed", "_target_share"):
            patch.setattr(benchmark, name, note)
        patch.setattr(benchmark, "in_fresh_process", lambda function, text: 7.0)
        figures = benchmark.measure_data(args, load_config(config, args.opts))
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
    candidates, placed = benchmark.crowd(samples, 5)
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


def test_figures_of_the_heads_part(tmp_path, sample_dir) -> None:
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
