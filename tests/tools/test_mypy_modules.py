"""tools/mypy_modules.py: what a module holds is of any type, what a class declares is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.size: int = 3


def of_any_type(net: nn.Module) -> int:
    return net.head.size


def declared(net: Net) -> str:
    return net.size
"""


def test_guesses_are_left_and_declared_types_are_held(tmp_path: Path):
    (tmp_path / "code.py").write_text(CODE)
    plugin = REPO / "tools" / "mypy_modules.py"
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nplugins = {plugin}\nfollow_imports = silent\nignore_missing_imports = true\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "code.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "error" in line and "code.py" in line]
    assert len(found) == 1 and found[0].startswith("code.py:16: error: Incompatible return value")
    assert done.returncode == 1, done.stderr
