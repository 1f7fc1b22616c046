"""Config files and KEY VALUE options: unknown keys, wrong types, values that fit nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import FUZZ, MUTATIONS, answer, mutated

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model, check_training_config
from mpn_d2.engine.stages import stage_config

REPO = Path(__file__).resolve().parents[2]
SMALL = str(REPO / "configs" / "quick" / "demo.yaml")
TINY = ["MODEL.PRN.NODES", "8", "MODEL.KP_SUBNET.D_DIM", "32", "MODEL.KP_SUBNET.SMOOTH_DIM", "32"]


def good() -> dict:
    """The demo's network with few channels, as a file without a base."""
    cfg = load_config(SMALL, TINY)
    return yaml.safe_load(cfg.dump())


GOOD = good()
KEYS = [f"{a}.{b}" for a, section in GOOD.items() if isinstance(section, dict) for b in section]
# A message names the file or a key.
SECTIONS = [f"{a}." if isinstance(section, dict) else a for a, section in GOOD.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed configs")


def use(file: str, options: list[str]) -> None:
    cfg = load_config(file, options)
    for stage in cfg.STAGES.ORDER:
        check_training_config(stage_config(cfg, stage, options))
    build_pose_model(cfg)


def moderate(value: object) -> object:
    """Numbers that a network can be built from on this machine, or none can."""
    if isinstance(value, dict):
        return {key: moderate(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [moderate(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and 1000 < abs(value) < 10**6:
        return value
    too_much = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**6
    return -(10**6) if too_much else value


def test_the_config_itself_is_good(folder):
    file = folder / "good.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert answer("configs", lambda: use(str(file), [])) == "result"


@FUZZ
@given(mutations=MUTATIONS)
@example(mutations=[([0], "rename", None)])
def test_files(folder, mutations):
    file = folder / "config.yaml"
    file.write_text(yaml.dump(moderate(mutated(GOOD, mutations))), encoding="utf-8",
                    errors="replace")  # fmt: skip
    answer("configs", lambda: use(str(file), []), str(file), *SECTIONS)


@FUZZ
@given(text=st.text(max_size=60))
@example(text="!!python/object/apply:os.mkdir [{marker}]")
@example(text="OUTPUT_DIR: !!python/object/apply:os.mkdir [{marker}]")
@example(text="OUTPUT_DIR: !!python/name:os.getcwd")
@example(text="_BASE_: config.yaml")
@example(text="_BASE_: /dev/zero")
def test_files_of_something_else(folder, text):
    file, marker = folder / "config.yaml", folder / "acted"
    text = text.replace("{marker}", str(marker))
    file.write_text(text, encoding="utf-8", errors="replace")
    answer("configs", lambda: load_config(str(file)), str(file))
    assert not marker.exists(), "the file's text was executed"


@FUZZ
@given(
    key=st.one_of(st.sampled_from(KEYS), st.text(max_size=12)),
    value=st.one_of(
        st.text(max_size=8),
        st.sampled_from(["-1", "0", "None", "[]", "()", "{}", "nan", "'a'", "[1, 'b']", "1e999"]),
    ),
)
def test_options(key, value):
    named = " ".join(key.split()) if key.isprintable() and key.strip() else repr(key)
    answer("configs", lambda: use(SMALL, [*TINY, key, value]), named, *SECTIONS)
