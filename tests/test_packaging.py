"""What is installed, and by which versions: setup.py, constraints.txt, the set-up tool, make."""

from __future__ import annotations

import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from repo_tools import load_tool

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The arguments that setup.py hands to setuptools."""
    captured: dict = {}
    monkeypatch.setattr(setuptools, "setup", captured.update)
    monkeypatch.chdir(REPO)
    runpy.run_path(str(REPO / "setup.py"), run_name="__main__")
    return captured


@pytest.fixture
def tool() -> ModuleType:
    """A fresh import of tools/setup_environment.py."""
    return load_tool("setup_environment")


def pins() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


# -------------------------------------------------------------------------------- setup.py


def test_only_our_package_is_installed(setup_arguments: dict) -> None:
    packages = setup_arguments["packages"]
    assert {name.split(".")[0] for name in packages} == {"mpn_d2"}
    folders = {path.parent for path in (REPO / "mpn_d2").rglob("*.py")}
    expected = {".".join(folder.relative_to(REPO).parts) for folder in folders}
    assert set(packages) == expected, "a folder of mpn_d2 without __init__.py is not installed"


def test_every_python_of_the_range_is_named(setup_arguments: dict) -> None:
    start = "Programming Language :: Python :: "
    named = [x.removeprefix(start) for x in setup_arguments["classifiers"] if x.startswith(start)]
    allowed = SpecifierSet(setup_arguments["python_requires"])
    assert named == [f"3.{minor}" for minor in range(30) if f"3.{minor}.1" in allowed]


def test_ci_runs_all_checks() -> None:
    lines = (REPO / ".ci" / "run").read_text().splitlines()
    goals = [line.split()[1] for line in lines if line.startswith("make ")]
    assert goals == ["setup", "lint", "types", "test"]


def test_detectron2_is_never_required(setup_arguments: dict) -> None:
    lists = [setup_arguments["install_requires"], *setup_arguments["extras_require"].values()]
    assert not [name for names in lists for name in names if "detectron2" in name]


def test_pins_lie_in_the_tested_ranges(setup_arguments: dict) -> None:
    pinned = pins()
    required = list(setup_arguments["install_requires"])
    for extra in ("test", "convert", "export", "backbones", "docs"):
        required += setup_arguments["extras_require"][extra]
    for requirement in map(Requirement, required):
        if requirement.name.startswith("opencv") and requirement.name not in pinned:
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} excludes the pin {version}"


@pytest.mark.parametrize("other", ["opencv-python", "opencv-contrib-python"])
def test_another_opencv_is_enough(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    lists = runpy.run_path(str(REPO / "setup.py"), run_name="lists")
    metadata = lists["importlib"].metadata
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    assert [Requirement(r).name for r in lists["opencv_requirement"]()] == [
        "opencv-python-headless"
    ]
    installed[other] = "4.12"
    assert lists["opencv_requirement"]() == []


def test_wheel_holds_the_package_and_its_configs(tmp_path: Path) -> None:
    """Built from a copy: a build folder in the work tree would hide files that are gone."""
    copy = tmp_path / "copy with spaces"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(REPO / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("mpn_d2", "tools", "tests"):
        shutil.copytree(REPO / name, copy / name, ignore=ignored)
    (copy / "configs" / "deep").mkdir(parents=True)
    (copy / "configs" / "Base.yaml").write_text("VERSION: 2\n")
    (copy / "configs" / "deep" / "one.yaml").write_text("_BASE_: ../Base.yaml\n")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(copy)], check=True)
    [wheel] = tmp_path.glob("mpn_d2-0.1.0-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("mpn_d2/configs/deep/one.yaml") == b"_BASE_: ../Base.yaml\n"
        scripts = archive.read("mpn_d2-0.1.0.dist-info/entry_points.txt").decode()
        [metadata] = [n for n in names if n.endswith(".dist-info/METADATA")]
        fields = email.message_from_bytes(archive.read(metadata))
    assert "mpn-train = mpn_d2.cli.train:run" in scripts
    assert "mpn-demo = mpn_d2.cli.demo:run" in scripts
    assert SpecifierSet(fields["Requires-Python"]) == SpecifierSet(">=3.11,<3.14")
    assert {name.split("/")[0] for name in names} == {"mpn_d2", "mpn_d2-0.1.0.dist-info"}
    sources = {str(path.relative_to(REPO)) for path in (REPO / "mpn_d2").rglob("*.py")}
    assert sources <= names and "mpn_d2/configs/Base.yaml" in names
    assert any(name.endswith("LICENSE") for name in names)


@pytest.fixture(scope="module")
def wheel_of_the_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the source distribution, unpacked elsewhere, without this repository."""
    folder = tmp_path_factory.mktemp("source")
    copy = folder / "copy"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "output", "build", "*.egg-info", "docs")
    shutil.copytree(REPO, copy, ignore=ignored, symlinks=True)
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=copy, capture_output=True)
    shutil.rmtree(copy)
    [archive] = folder.glob("mpn_d2-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    for name in ("LICENSE", "CHANGELOG.md", "CITATION.cff", "README.md"):
        assert (unpacked / name).is_file(), name
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(unpacked)], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def test_source_distribution_makes_the_same_wheel(wheel_of_the_source: Path) -> None:
    """With every config, all weights and layouts."""
    names = set(zipfile.ZipFile(wheel_of_the_source).namelist())
    configs = {f"mpn_d2/{path.relative_to(REPO)}" for path in (REPO / "configs").rglob("*.yaml")}
    data = [*(REPO / "mpn_d2" / "weights").iterdir(), *(REPO / "mpn_d2/data/layouts").iterdir()]
    assert configs and configs <= names
    assert {str(path.relative_to(REPO)) for path in data} <= names


@pytest.fixture(scope="module")
def installed(
    wheel_of_the_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """installed(program of bin/, *arguments): runs it in a new environment that has the wheel.

    What the package needs is this environment's: a path to it, so that nothing is downloaded and
    no editable install of mpn_d2 comes with it.
    """
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(packages.stdout.strip(), "needed.pth").write_text("\n".join(sorted(ours)))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    offline = ["--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*command, *offline, wheel_of_the_source], check=True)

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [str(python.parent / program), *arguments]
        return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)

    return run


def test_installed_wheel_runs_without_the_repository(installed: Callable) -> None:
    """The doctor imports the package there, finds its configs and weights, and is content."""
    done = installed("python", "-m", "mpn_d2.doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [x for x in done.stdout.splitlines() if " mpn_d2: " in x]
    assert line.split()[0] == "ok" and line.endswith("/clean0/venv/lib/" + _packages())
    assert "bundled photographs: in the repository alone" in done.stdout
    assert "make setup" not in done.stdout and str(REPO / "mpn_d2") not in done.stdout
    assert done.stdout.endswith("mpn_d2 can run here\n")


def _packages() -> str:
    return f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/mpn_d2"


def test_installed_command_finds_configs_by_name(installed: Callable) -> None:
    done = installed("mpn-train", "--config-file", "MultiPoseNet/R_5.yaml")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()[-1:]
    assert "no config of mpn_d2; near:" in line and "MultiPoseNet/R_50.yaml" in line


# ----------------------------------------------------------------------- setup_environment


def stamp(tool: ModuleType, folder: Path, **changes: str) -> None:
    versions = {"numpy": tool._version("numpy"), **changes}
    key = tool.current_key(folder, "auto")
    (folder / tool.STAMP).write_text(json.dumps({"key": key, "versions": versions}))


def test_repeat_does_nothing(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fills: list[Path] = []
    monkeypatch.setattr(tool, "fill", lambda environment, *_: fills.append(environment))
    tool.complete(tmp_path, "auto")
    assert fills == [tmp_path]
    tool.complete(tmp_path, "auto")
    assert fills == [tmp_path], "the second run found the stamp"
    tool.complete(tmp_path, "official")
    assert len(fills) == 2, "another source is another key"


def test_stamp_goes_stale(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stamp(tool, tmp_path)
    key = tool.current_key(tmp_path, "auto")
    assert tool.is_up_to_date(tmp_path, key)
    assert not tool.is_up_to_date(tmp_path, "0" * 64)
    stamp(tool, tmp_path, torch="0.0.1")
    assert not tool.is_up_to_date(tmp_path, key), "a package was changed by hand"
    stamp(tool, tmp_path)
    monkeypatch.setattr(tool.installer, "find_detectron2", lambda: None)
    assert not tool.is_up_to_date(tmp_path, key), "Detectron2 was removed"


def test_other_pins_take_the_place_of_ours(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = "numpy==2.4.6\nPyYAML==6.0.3\ntorch==2.15.0\ntorchvision==0.29.2\n"
    changed = tool.with_pins(ours, ["torch==2.13.0", "torchvision", "pyyaml==6.0.1"])
    assert changed.splitlines() == ["numpy==2.4.6", "torch==2.13.0", "pyyaml==6.0.1"]
    assert tool.with_pins(ours, []) == ours
    seen: list[str] = []
    monkeypatch.setattr(tool, "fill", lambda *given: seen.append(given[2].read_text()))
    (tmp_path / tool.OWNED).touch()
    for given in ([], ["torch==2.13.0"], ["torch==2.13.0"], ["torch==2.14.0"]):
        tool.complete(tmp_path, "auto", given)
    assert len(seen) == 3, "the same pins are up to date, others are not"
    assert seen[0] == (REPO / "constraints.txt").read_text()
    for text, version in zip(seen[1:], ("2.13.0", "2.14.0")):
        assert [x for x in text.splitlines() if x.startswith("torch==")] == [f"torch=={version}"]


def test_every_key_file_matters(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for name in tool.KEY_FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, root / name)
    monkeypatch.setattr(tool, "ROOT", root)
    keys = {tool.current_key(tmp_path, "auto")}
    for name in tool.KEY_FILES:
        with open(root / name, "a") as file:
            file.write("# changed\n")
        keys.add(tool.current_key(tmp_path, "auto"))
    assert len(keys) == len(tool.KEY_FILES) + 1


def test_failed_setup_leaves_no_stamp(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise tool.installer.InstallError("no network")

    stamp(tool, tmp_path, numpy="0")
    monkeypatch.setattr(tool, "fill", fail)
    with pytest.raises(tool.installer.InstallError):
        tool.complete(tmp_path, "auto")
    assert not (tmp_path / tool.STAMP).exists()


def test_environments_of_others_keep_their_versions(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        metadata = {"Name": "PyTest"}  # noqa: RUF012
        version = "8.1"

    monkeypatch.setattr(tool.importlib.metadata, "distributions", lambda: [Fake])
    lines = tool.kept_versions().splitlines()
    assert "pytest==8.1" in lines
    assert f"torch=={pins()['torch']}" in lines
    assert not [line for line in lines if line.startswith("pytest==") and line != "pytest==8.1"]


def test_a_folder_that_is_no_environment_is_left_alone(
    tool: ModuleType, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").touch()
    assert tool.main([str(tmp_path)]) == 1
    assert "is no Python environment" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


# ------------------------------------------------------------------------------------ make


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("no make")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment.update(variables)
    command = ["make", "-C", str(REPO), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_make_alone_explains_itself() -> None:
    result = make()
    assert result.returncode == 0
    for target in ("setup", "demo", "test", "lint", "types", "versions", "clean"):
        assert re.search(rf"^make {target} ", result.stdout, re.MULTILINE), result.stdout


def test_make_names_an_unsupported_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.8.1' && exit 0\nexit 1\n")
    old.chmod(0o755)
    for name in ("python3.11", "python3.12", "python3.13"):
        shutil.copy(old, tmp_path / name)
    path = f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"
    result = make("setup", f"VENV={tmp_path / 'none'}", PATH=path)
    assert result.returncode != 0
    assert "needs Python 3.11 to 3.13; python3 is Python 3.8.1" in result.stderr
    assert not (tmp_path / "none").exists()
