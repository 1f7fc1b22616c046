"""The beginning of a run: its folder, config.yaml, and where messages go."""

from __future__ import annotations

import logging
from argparse import Namespace

import pytest
import yaml

from mpn_d2.engine.setup import start_run


@pytest.fixture()
def begin(paper_config):
    def begin(folder):
        cfg = paper_config("quick/demo.yaml", ["OUTPUT_DIR", str(folder), "SEED", "3"])
        start_run(cfg, Namespace(config_file="", opts=[]))
        return cfg

    return begin


def test_a_file_in_the_place_of_the_folder_is_named(begin, tmp_path):
    (tmp_path / "file").write_text("old")
    for folder in ("file", "file/out"):
        with pytest.raises(OSError, match=f"^OUTPUT_DIR: .*{folder} .*/file is a file; name ano"):
            begin(tmp_path / folder)
    assert (tmp_path / "file").read_text() == "old"


def test_config_and_messages(begin, tmp_path, capsys):
    cfg = begin(tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text()) == yaml.safe_load(cfg.dump())
    log = logging.getLogger("detectron2.engine")
    for error, words in ((ValueError("of the user"), "told"), (TypeError("of ours"), "not told")):
        try:
            raise error
        except (ValueError, TypeError):
            log.exception(words)
    shown, kept = capsys.readouterr().out, (tmp_path / "out/log.txt").read_text()
    assert "ValueError" in kept and "TypeError" in kept and kept.count("Traceback") == 2
    assert "TypeError: of ours" in shown and "ValueError" not in shown
    assert "environment" in shown and "Config:" in kept


def test_runs_of_one_process_tell_their_own_messages_once(begin, tmp_path, capsys):
    log = logging.getLogger("mpn_d2.test")
    for run in ("one", "two", "one"):
        begin(tmp_path / run)
        log.info("message of %s", run)
    shown = capsys.readouterr().out
    assert shown.count("message of one") == 2 and shown.count("message of two") == 1
    kept = [(tmp_path / run / "log.txt").read_text() for run in ("one", "two")]
    assert [text.count("message of one") for text in kept] == [2, 0]
    assert [text.count("message of two") for text in kept] == [0, 1]
