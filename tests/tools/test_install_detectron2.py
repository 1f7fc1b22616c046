"""tools/install_detectron2.py on a small fake wheel: offline, nothing is installed here."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from repo_tools import load_tool

TOOL = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"
OLD_INFO = "sal_detectron2-0.7.2.dist-info/"
NEW_INFO = "sal_detectron2-0.7.2+pure1.dist-info/"
METADATA = """\
Metadata-Version: 2.1
Name: sal-detectron2
Version: 0.7.2
Requires-Dist: termcolor>=1.1
Requires-Dist: numpy<2
Requires-Dist: packaging
Provides-Extra: all
Requires-Dist: shapely; extra == "all"

A body that says Version: 0.7.2 and stays.
"""


@pytest.fixture
def tool() -> ModuleType:
    """A fresh import of the tool, free to be patched."""
    return load_tool(TOOL)


@pytest.fixture
def bare(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The tool as if no Detectron2 were installed, and pip without any index."""
    monkeypatch.setattr(tool, "find_detectron2", lambda: None)
    monkeypatch.setattr(tool, "installed_version", lambda name: None)
    links = tmp_path / "links"
    links.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return tool


def make_wheel(folder: Path, year: int = 2024) -> Path:
    """A wheel with everything that the real one has wrong."""
    files = {
        "detectron2/__init__.py": "__version__ = '0.7.2'\n",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
        "detectron2/tools/kept.py": "x = 1\n",
        "tools/__init__.py": "",
        "tools/train_net.py": "raise SystemExit\n",
        OLD_INFO + "LICENSE": "the licence\n",
        OLD_INFO + "METADATA": METADATA,
        OLD_INFO + "WHEEL": "Wheel-Version: 1.0\nGenerator: g\nRoot-Is-Purelib: false\n"
        "Tag: cp310-cp310-linux_x86_64\n\n",
        OLD_INFO + "top_level.txt": "detectron2\ntools\n",
        OLD_INFO + "RECORD": "stale\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name, (year, 1, 2, 3, 4, 6)), text)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_one_line(text: str) -> str:
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text


# ------------------------------------------------------------------------------- repacking


def test_repacked_wheel_holds_the_package_and_the_licence_alone(
    tool: ModuleType, tmp_path: Path
) -> None:
    packed = tool.repack(make_wheel(tmp_path / "in"), tmp_path)
    assert packed.name == "sal_detectron2-0.7.2+pure1-py3-none-any.whl"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", packed.name]
    with zipfile.ZipFile(packed) as wheel:
        assert sorted(wheel.namelist()) == sorted(
            ["detectron2/__init__.py", "detectron2/tools/kept.py"]
            + [NEW_INFO + n for n in ("LICENSE", "METADATA", "WHEEL", "top_level.txt", "RECORD")]
        )
        assert wheel.read(NEW_INFO + "LICENSE") == b"the licence\n"
        assert wheel.read(NEW_INFO + "top_level.txt") == b"detectron2\n"
        tags = wheel.read(NEW_INFO + "WHEEL").decode().split("\n")
    assert "Root-Is-Purelib: true" in tags and "Root-Is-Purelib: false" not in tags
    assert [line for line in tags if line.startswith("Tag")] == ["Tag: py3-none-any"]


def test_metadata_changes_version_and_requirements_only(tool: ModuleType) -> None:
    expected = METADATA.replace("Version: 0.7.2\nReq", "Version: 0.7.2+pure1\nReq")
    expected = expected.replace("Requires-Dist: numpy<2\n", "")
    expected = expected.replace(
        "packaging\n",
        "packaging\nRequires-Dist: fvcore<0.1.6,>=0.1.5\nRequires-Dist: iopath<0.2,>=0.1.9\n"
        "Requires-Dist: setuptools<82\n",
    )
    assert tool.edit_metadata(METADATA) == expected


def test_record_matches_every_file(tool: ModuleType, tmp_path: Path) -> None:
    packed = tool.repack(make_wheel(tmp_path / "in"), tmp_path)
    with zipfile.ZipFile(packed) as wheel:
        rows = [line.split(",") for line in wheel.read(NEW_INFO + "RECORD").decode().splitlines()]
        assert sorted(name for name, _, _ in rows) == sorted(wheel.namelist())
        assert rows[-1] == [NEW_INFO + "RECORD", "", ""]
        for name, digest, size in rows[:-1]:
            data = wheel.read(name)
            code = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={code}", len(data)), name


def test_repacking_depends_on_contents_alone(tool: ModuleType, tmp_path: Path) -> None:
    outputs = []
    for year in (2024, 2025):
        folder = tmp_path / str(year)
        outputs.append(tool.repack(make_wheel(folder, year), folder).read_bytes())
    assert sha256(tmp_path / "2024" / "sal_detectron2-0.7.2-cp310-none-any.whl") != sha256(
        tmp_path / "2025" / "sal_detectron2-0.7.2-cp310-none-any.whl"
    )
    assert outputs[0] == outputs[1]


def test_pip_takes_the_repacked_wheel(bare: ModuleType, tmp_path: Path) -> None:
    packed = bare.repack(make_wheel(tmp_path / "in"), tmp_path)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*command, str(packed)], check=True)
    assert sorted(path.name for path in site.iterdir()) == ["detectron2", NEW_INFO[:-1]]


# ----------------------------------------------------------------------- download and install


def test_registry_downloads_by_hash_and_installs_with_constraints(
    bare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_wheel(tmp_path / "links")
    monkeypatch.setattr(bare, "REGISTRY_SHA256", sha256(source))
    constraints = tmp_path / "pins.txt"
    constraints.touch()
    installs = []
    real_pip = bare.run_pip

    def spy(arguments: list[str], **options: bool) -> tuple[int, str]:
        if arguments[0] == "download":
            return real_pip(arguments, **options)
        links = Path(arguments[arguments.index("--find-links") + 1])
        installs.append((arguments, [path.name for path in links.iterdir()], links))
        return 0, ""

    monkeypatch.setattr(bare, "run_pip", spy)
    kept = tmp_path / "kept"
    assert bare.main(["--constraints", str(constraints), "--wheel-dir", str(kept)]) == 0
    [(arguments, linked, links)] = installs
    assert arguments[-1] == "sal-detectron2==0.7.2+pure1"
    assert arguments[arguments.index("--constraint") + 1] == str(constraints)
    assert linked == ["sal_detectron2-0.7.2+pure1-py3-none-any.whl"]
    assert not links.exists(), "the temporary folder is gone"
    assert [path.name for path in kept.iterdir()] == linked


def test_wrong_hash_is_one_line_and_leaves_nothing(
    bare: ModuleType, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_wheel(tmp_path / "links")
    assert bare.main(["--source", "registry", "--wheel-dir", str(tmp_path / "kept")]) == 1
    line = assert_one_line(capfd.readouterr().err)
    assert "wrong hash" in line and bare.REGISTRY_SHA256 in line
    assert not (tmp_path / "kept").exists()


def test_hash_is_checked_without_pip_too(tool: ModuleType, tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    tool.check_hash(path, sha256(path))
    with pytest.raises(tool.InstallError, match=f"wrong hash .*{sha256(path)}"):
        tool.check_hash(path, "0" * 64)


def test_unreachable_package_is_one_line(
    bare: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bare.main([]) == 1
    line = assert_one_line(capfd.readouterr().err)
    assert "cannot download sal-detectron2 0.7.2" in line and "No matching distribution" in line


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("WARNING: Retrying (Retry(total=4)) after ...\nERROR: No matching", "not reached"),
        ("x\nERROR: first\nerror: subprocess-exited\nhint: y\n", "error: subprocess-exited"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "what: "),
    ],
)
def test_pip_failures_are_explained(tool: ModuleType, output: str, expected: str) -> None:
    message = str(tool.explain("what", output))
    assert expected in message and "\n" not in message


def test_failed_install_is_one_line(
    bare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bare, "download_registry_wheel", lambda folder: make_wheel(tmp_path))
    monkeypatch.setattr(bare, "run_pip", lambda arguments, **options: (1, "ERROR: disk full\n"))
    assert bare.main([]) == 1
    assert "disk full" in assert_one_line(capfd.readouterr().err)


def test_dry_run_calls_no_pip(bare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "run_pip", lambda *a, **k: pytest.fail("pip was called"))
    assert bare.main(["--dry-run"]) == 0


# ----------------------------------------------------------------- what is there already


@pytest.mark.parametrize(
    ("source", "other"), [("registry", "detectron2"), ("official", "sal-detectron2")]
)
def test_other_distribution_is_refused(
    bare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    source: str,
    other: str,
) -> None:
    monkeypatch.setattr(bare, "installed_version", {other: "0.6"}.get)
    monkeypatch.setattr(bare, "run_pip", lambda *a, **k: pytest.fail("pip was called"))
    assert bare.main(["--source", source]) == 1
    assert f"{other} 0.6 is installed" in assert_one_line(capfd.readouterr().err)


def run_with(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the tool where `import detectron2` finds this code first."""
    package = folder / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    command = [sys.executable, str(TOOL), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_auto_uses_an_importable_detectron2(tmp_path: Path) -> None:
    result = run_with(tmp_path, "__version__ = '9.9'\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert "9.9" in result.stdout and str(tmp_path / "detectron2") in result.stdout


def test_auto_names_a_broken_detectron2(tmp_path: Path) -> None:
    result = run_with(tmp_path, "import no_such_module_here\n")
    assert result.returncode == 1
    assert "no_such_module_here" in assert_one_line(result.stderr)


# ------------------------------------------------------------------------- the machine


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0), (4, 0, 0)])
def test_unsupported_python_is_refused(tool: ModuleType, version: tuple[int, int, int]) -> None:
    with pytest.raises(tool.InstallError, match=r"is not supported: use Python 3\.11 to 3\.13"):
        tool.check_python(version)
    for supported in ((3, 11, 0), (3, 13, 9)):
        tool.check_python(supported)


def test_unsupported_python_is_one_line(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "PYTHON_RANGE", ((3, 98), (3, 99)))
    assert tool.main([]) == 1
    assert "is not supported" in assert_one_line(capfd.readouterr().err)


@pytest.mark.parametrize(
    ("commands", "expected"),
    [((), "needs git"), (("git",), "C++ compiler"), (("git", "c++"), "needs torch")],
)
def test_official_says_what_it_lacks(
    bare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    commands: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr(bare.shutil, "which", lambda name: name if name in commands else None)
    monkeypatch.setattr(bare.importlib.util, "find_spec", lambda name: None)
    assert bare.main(["--source", "official"]) == 1
    assert expected in assert_one_line(capfd.readouterr().err)


def test_official_builds_the_pinned_commit(
    bare: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(bare.shutil, "which", lambda name: name)
    monkeypatch.setattr(bare.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(bare, "run_pip", lambda arguments: calls.append(arguments) or (0, ""))
    assert bare.main(["--source", "official"]) == 0
    [arguments] = calls
    assert arguments[:2] == ["install", "--no-build-isolation"]
    assert len(bare.OFFICIAL_COMMIT) == 40 and arguments[-1].endswith("@" + bare.OFFICIAL_COMMIT)
