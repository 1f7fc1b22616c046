"""Every command in README and docs is one that this repository understands.

`tools/*.py` and `train_net.py` parse their line and load its config with its keys; `make` goals are
dry-run by make, pieces of Python compiled. Names in capitals, `out` and the like stand for the
reader's files. test_docs_commands_run.py runs the commands.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from repo_tools import load_tool

from mpn_d2.cli import train as train_command
from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.engine.stages import stage_config, stage_names

REPO = Path(__file__).resolve().parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# What stands for the reader's own config, in pages whose commands fit any.
ANY_CONFIG = "configs/MultiPoseNet/R_50.yaml"
# Programs that are not ours: their lines are shown, not checked.
FOREIGN = {"export", "pip", ".", "tensorboard", "cd", "head=$(scontrol"}
_ENVIRONMENT = re.compile(r"^[A-Z][A-Z0-9_]*=")
_OPTIONS_FROM = ("--opts",)


def commands_of(text: str) -> list[str]:
    """Lines of a page that a reader types, continued ones joined, without comments."""
    found, pending, language, fenced = [], "", "", False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced, language, pending = not fenced, line[3:].strip(), ""
            continue
        indented = not fenced and line.startswith("    ")
        if not (indented or (fenced and language in ("", "bash"))):
            pending = ""
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        command, pending = re.sub(r"(^|\s)#.*$", "", pending).strip(), ""
        if command and (fenced or starts_like_a_command(command)):
            found.append(command)
    return found


def starts_like_a_command(line: str) -> bool:
    """Of indented lines: others are file listings and pieces of JSON."""
    return re.match(r"(python|make|torchrun|mpn-\w+|[A-Z_]+=\S+ (python|make))\b", line) is not None


def listed() -> list[tuple[str, str]]:
    pairs = [(page.name, x) for page in PAGES for x in commands_of(page.read_text())]
    return [(page, x) for page, x in pairs if not is_listing(x)]


def is_listing(line: str) -> bool:
    """A line of a table of folders and files (README, own data) and of Slurm's own comments."""
    return (
        re.match(r"(mpn_d2/|tools/ |train_net\.py |my_data/|install_detectron2$|[a-z_]+,)", line)
        is not None
    )


def words_of(command: str) -> list[str]:
    """Words from the program on; variables of the environment before it are left out."""
    words = shlex.split(command)
    while words and _ENVIRONMENT.match(words[0]):
        words.pop(0)
    return words


def check_training(arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
    args = train_command.parse_args()
    cfg = load_config(any_config(args.config_file), any_values(args.opts))
    assert args.stage == "all" or args.stage in stage_names(cfg)
    for stage in cfg.STAGES.ORDER:
        stage_config(cfg, stage, args.opts)


def any_config(name: str) -> str:
    return str(REPO / ANY_CONFIG) if name == "C" else config_file(name)


def any_values(options: list[str]) -> list[str]:
    """KEY VALUE pairs; "..." stands for what the lines above it had."""
    return [] if options == ["..."] else options


def check_tool(script: str, arguments: list[str], monkeypatch) -> None:
    path = REPO / script
    assert path.is_file(), f"{script} does not exist"
    module = load_tool(path)
    if not hasattr(module, "parse_args"):
        pytest.skip(f"{script} takes its arguments as they come; tests/tools runs it")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    args = module.parse_args()
    config = getattr(args, "config_file", None)
    if config:
        load_config(any_config(config), any_values(list(getattr(args, "opts", None) or [])))


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(p, c, id=f"{p}-{i}") for i, (p, c) in enumerate(listed())]
)
def test_command_is_understood(page, command, monkeypatch):
    monkeypatch.chdir(REPO)
    words = words_of(command)
    if not words or words[0] in FOREIGN:
        return
    if words[0] == "make":
        goals = [x for x in words[1:] if "=" not in x]
        done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, cwd=REPO)
        assert goals and done.returncode == 0, done.stderr
    elif words[0] == "mpn-train":
        check_training(words[1:], monkeypatch)
    elif "train_net.py" in words:  # python, torchrun or srun before it
        check_training(words[words.index("train_net.py") + 1 :], monkeypatch)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, f"docs/{page} names {words[2]}"
    elif words[:2] == ["python", "-c"]:
        compile(words[2], page, "exec")
    else:
        assert words[0] == "python", f"docs/{page} names the program {words[0]}"
        check_tool(words[1], words[2:], monkeypatch)


def test_commands_are_found():
    text = (
        "```\nmake demo   # a comment\npython tools/x.py --a \\\n    b\n```\ntext\n\n"
        "    python tools/y.py\n    {json: 1}\n\n```python\nimport os\n```\n"
    )
    assert commands_of(text) == ["make demo", "python tools/x.py --a b", "python tools/y.py"]
    assert len(listed()) > 60


@pytest.mark.parametrize(
    "command",
    [
        "python train_net.py --config-file configs/MultiPoseNet/none.yaml",
        "python train_net.py --config-file C MODEL.NO_SUCH_KEY 1",
        "python train_net.py --config-file C --stage nothing",
        "python tools/nothing.py --output x",
        "python tools/evaluate.py --no-such-option",
        "make nothing",
        "perl nothing",
    ],
)
def test_a_wrong_command_fails(command, monkeypatch):
    with pytest.raises((AssertionError, OSError, ValueError, KeyError, SystemExit)):
        test_command_is_understood("page", command, monkeypatch)


def test_every_tool_is_run_by_a_test():
    """A file of its own in tests/tools, or a test that names it."""
    tests = {path: path.read_text() for path in (REPO / "tests").rglob("test_*.py")}
    for script in sorted((REPO / "tools").glob("*.py")):
        own = REPO / "tests" / "tools" / f"test_{script.stem}.py"
        others = [p for p, text in tests.items() if re.search(rf"\b{script.stem}\b", text)]
        assert own in tests or others, f"no test runs {script.name}"
