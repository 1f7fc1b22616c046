#!/usr/bin/env python3
"""Makes or completes the Python environment of this repository: what `make setup` runs.

    python tools/setup_environment.py ENVIRONMENT [--detectron2 auto|official|registry]
        [--pins NAME==VERSION | NAME ...]

An environment that does not exist is created and holds the exact versions of constraints.txt; the
repository's own .venv also gets mpn_d2 itself, editable. One that somebody else made is only added
to: what it has stays at its version (a version outside the ranges of setup.py is an error), and
mpn_d2 is not installed there, so that several clones can share it (the Makefile sets PYTHONPATH).
--pins takes other versions than constraints.txt has (a name alone: any that fits).
A stamp in the environment makes a repeat quick. Standard library only; runs on any Python from 3.7
far enough to say that it is too old.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PIP_VERSION = "26.3"
STAMP = ".mpn_d2_setup.json"
OWNED = ".mpn_d2_created"  # marks environments that this tool made
KEY_FILES = (
    "constraints.txt",
    "setup.py",
    "pyproject.toml",
    "tools/install_detectron2.py",
    "tools/setup_environment.py",
)


def load(path: Path) -> ModuleType:
    """Imports a file by its path (`tools` is no package)."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installer = load(ROOT / "tools" / "install_detectron2.py")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def call(command: Sequence[str | Path], what: str) -> None:
    """Runs a command with its output shown; raises InstallError naming the step."""
    if subprocess.run([str(part) for part in command], cwd=ROOT).returncode:
        raise installer.InstallError(f"{what} failed, see above; nothing else was done")


# ------------------------------------------------------------------------ creating (base Python)


def create(environment: Path) -> None:
    """A fresh virtual environment with this Python, marked as ours."""
    installer.check_python()
    if environment.exists() and (not environment.is_dir() or any(environment.iterdir())):
        if not (environment / "pyvenv.cfg").is_file():
            raise installer.InstallError(
                f"{environment} exists but is no Python environment: name another with VENV="
            )
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"creating {environment} with Python {version} ({sys.executable})")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise installer.InstallError(
                f"this Python lacks the module {module} (Debian, Ubuntu: apt install python3-venv)"
            )
    call([sys.executable, "-m", "venv", environment], "creating the environment")
    (environment / OWNED).touch()


# ------------------------------------------------------------------- filling (its own Python)


def requirements() -> list[str]:
    """What mpn_d2, all of its tools and its tests need, from setup.py."""
    # In a process of its own: setup.py imports setuptools, which may have been replaced just now.
    code = """if True:
        import json, runpy
        lists = runpy.run_path("setup.py", run_name="lists")
        needed = lists["REQUIREMENTS"] + lists["opencv_requirement"]()
        for extra in ("test", "convert", "export", "backbones", "docs"):
            needed += lists["EXTRAS"][extra]
        print(json.dumps(needed))"""
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def current_key(environment: Path, source: str, pins: Sequence[str] = ()) -> str:
    """Hash of everything that decides what setup does."""
    digest = hashlib.sha256(" ".join([sys.version, source, *pins]).encode())
    if _is_own_venv(environment):
        digest.update(os.fsencode(ROOT))  # the editable install points here
    for name in KEY_FILES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _is_own_venv(environment: Path) -> bool:
    return environment.resolve() == ROOT / ".venv"


def _version(requirement: str) -> str | None:
    return installer.installed_version(re.match(r"[\w.-]+", requirement).group())


def is_up_to_date(environment: Path, key: str) -> bool:
    """Whether the stamp is of this key and what it lists is still installed."""
    try:
        stamp = json.loads((environment / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return (
        stamp["key"] == key
        and all(_version(name) == version for name, version in stamp["versions"].items())
        and installer.find_detectron2() is not None
    )


def kept_versions() -> str:
    """Constraints that keep an environment of somebody else's as it is: its own versions first."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[_normal(name)] = version
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            pins[_normal(name)] = distribution.version
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def with_pins(constraints: str, pins: Sequence[str]) -> str:
    """Lines of constraints with these in the place of those of the same names."""
    names = {_normal(pin.partition("==")[0]) for pin in pins}
    kept = [x for x in constraints.splitlines() if _normal(x.partition("==")[0]) not in names]
    return "".join(f"{line}\n" for line in [*kept, *(pin for pin in pins if "==" in pin)])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def fill(environment: Path, source: str, constraints: Path) -> None:
    """Installs the requirements, Detectron2 and, in our own .venv, mpn_d2."""
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        raise installer.InstallError(f"{environment} has no pip: {sys.executable} -m ensurepip")
    owned = (environment / OWNED).is_file()
    if owned:
        say(f"1/4 pip {PIP_VERSION} and setuptools")
        call([*pip, "install", "-q", f"pip=={PIP_VERSION}"], "installing pip")
    else:
        say(f"1/4 {environment} was made by somebody else: only what is missing is added")
    if owned or importlib.util.find_spec("setuptools") is None:
        command = [*pip, "install", "-q", "-c", constraints, "setuptools"]
        call(command, "installing setuptools")
        importlib.invalidate_caches()
    # A long download shows how far it is; a conflict with what somebody installed, its cause.
    quiet = ["-q"] if owned and _version("torch") else []
    if _version("torch") is None:
        say("torch comes with its CUDA libraries: about 5.5 GB on disk, minutes to download")
    needed = requirements()
    say(f"2/4 requirements: {', '.join(needed)}")
    # Some dependencies are source-only; what builds them is pinned too where pip knows how.
    build = ["--build-constraint", constraints] if owned else []
    command = [*pip, "install", *quiet, "-c", constraints, *build, *needed]
    hint = "" if owned else " (a version outside these ranges is not replaced here)"
    call(command, f"installing requirements{hint}")
    say("3/4 Detectron2 (tools/install_detectron2.py)")
    importlib.invalidate_caches()
    tool = ROOT / "tools" / "install_detectron2.py"
    command = [sys.executable, tool, "--source", source, "--constraints", constraints]
    call(command, "installing Detectron2")
    if _is_own_venv(environment):
        say("4/4 mpn_d2, editable")
        options = ["-q", "--no-deps", "--no-build-isolation", "--editable", ROOT]
        call([*pip, "install", *options], "installing mpn_d2")
    else:
        say("4/4 mpn_d2 is not installed here: the Makefile's targets find it by PYTHONPATH")


def complete(environment: Path, source: str, pins: Sequence[str] = ()) -> None:
    """Brings an existing environment to the state that the stamp stands for."""
    installer.check_python()
    key = current_key(environment, source, pins)
    if is_up_to_date(environment, key):
        say(f"{environment} is up to date")
        return
    stamp = environment / STAMP
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="mpn_d2_") as folder:
        constraints = ROOT / "constraints.txt"
        owned = (environment / OWNED).is_file()
        if pins or not owned:
            text = constraints.read_text() if owned else kept_versions()
            constraints = Path(folder, "constraints.txt")
            constraints.write_text(with_pins(text, pins))
        fill(environment, source, constraints)
    importlib.invalidate_caches()
    versions = {name: _version(name) for name in requirements()}
    try:
        stamp.write_text(json.dumps({"key": key, "versions": versions}, indent=1))
    except OSError as error:
        say(f"cannot write {stamp} ({error.strerror}): the next run checks everything again")
    say(f"done: {environment}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", type=Path)
    parser.add_argument("--detectron2", choices=("auto", "official", "registry"), default="auto")
    parser.add_argument("--pins", nargs="+", default=[], metavar="NAME[==VERSION]")
    options = parser.parse_args(arguments)
    environment = Path(os.path.abspath(options.environment.expanduser()))
    python = environment / "bin" / "python"
    try:
        if not os.access(python, os.X_OK):
            create(environment)
        if Path(sys.prefix).resolve() != environment.resolve():
            command = [python, __file__, environment, "--detectron2", options.detectron2]
            command += ["--pins", *options.pins] if options.pins else []
            return subprocess.run([str(part) for part in command]).returncode
        complete(environment, options.detectron2, options.pins)
    except (installer.InstallError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
