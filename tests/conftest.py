"""Shared fixtures: one thread per test process, folders of real data."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
SAMPLE = REPO / "datasets" / "coco_sample"

torch.set_num_threads(1)

# Begun first: whichever file is begun last runs while the other processes have nothing to do.
LONGEST = (REPO / "tests" / "tools" / "test_train_synthetic.py", REPO / "tests" / "faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the longest files first, in the order of LONGEST; the others stay as they are."""

    def place(item: pytest.Item) -> int:
        found = [i for i, path in enumerate(LONGEST) if item.path.is_relative_to(path)]
        return found[0] if found else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """Loggers as before the test: a handler that Detectron2's setup_logger leaves behind writes to
    the standard output of a test that has ended, and its loggers no longer reach caplog."""
    names = list(logging.root.manager.loggerDict)
    before = {x: (x.handlers[:], x.propagate, x.level) for x in map(logging.getLogger, names)}
    yield
    for logger in map(logging.getLogger, list(logging.root.manager.loggerDict)):
        handlers, propagate, level = before.get(logger, ([], True, logging.NOTSET))
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    if "detectron2.utils.logger" in sys.modules:  # it remembers what it has set up
        sys.modules["detectron2.utils.logger"].setup_logger.cache_clear()


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
