"""Shared fixtures: one thread per test process, folders of real data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
SAMPLE = REPO / "datasets" / "coco_sample"

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Completed copies of annotation files stay out of the home folder."""
    os.environ["MPN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def sample_dir() -> Path:
    """The bundled photographs (always there)."""
    return SAMPLE


@pytest.fixture(scope="session")
def mpn_data() -> Path:
    """Folder of the development data (MPN_DATA); skips, saying why, where it is missing."""
    folder = os.environ.get("MPN_DATA", "")
    if folder and (Path(folder) / "coco").is_dir():
        return Path(folder)
    message = f"development data not found: MPN_DATA={folder!r} has no folder coco/"
    if os.environ.get("MPN_REQUIRE_DATA") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture()
def paper_config():
    """paper_config(file under configs/, options) -> config, without weights to fetch."""
    from mpn_d2.config import load_config

    def load(name: str, options: list[str] | None = None):
        return load_config(
            str(REPO / "configs" / name),
            ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *(options or [])],
        )

    return load


@pytest.fixture()
def register_coco(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """register_coco(content, **metadata) -> name of a dataset that is gone after the test."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    names = []

    def register(content: dict, **metadata: object) -> str:
        names.append(f"mpn_test_{len(names)}")
        file = tmp_path / f"{names[-1]}.json"
        file.write_text(json.dumps(content))
        register_coco_instances(names[-1], metadata, str(file), str(tmp_path))
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture()
def with_heatmap_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs have EVAL.HEATMAPS."""
    from mpn_d2 import config

    add = config.add_inference_keys

    def add_with_heatmaps(cfg: dict) -> None:
        add(cfg)
        cfg.EVAL.setdefault("HEATMAPS", False)

    monkeypatch.setattr(config, "add_inference_keys", add_with_heatmaps)
