#!/usr/bin/env python3
"""Installs Detectron2 into the environment of the Python that runs this file.

    python tools/install_detectron2.py [--source auto|official|registry] [--constraints F]

auto      an importable detectron2 is used as it is; otherwise as `registry`
registry  the wheel of `sal-detectron2` (upstream of 2024-04 under another name), taken by hash
          through pip as it is configured here, repacked as pure Python, then installed
official  builds a pinned commit of facebookresearch/detectron2 (needs git, a C++ compiler, torch)

Repacking changes four things (why: `repack`); its result depends on the input alone, byte by byte.
A failure is one line on stderr and exit status 1, with nothing of Detectron2 installed.
Standard library only: this runs before anything else is there.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PYTHON_RANGE = ((3, 11), (3, 14))  # first supported version, first unsupported one

REGISTRY_NAME = "sal-detectron2"
REGISTRY_VERSION = "0.7.2"
REGISTRY_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REPACKED_VERSION = REGISTRY_VERSION + "+pure1"  # a local version: pip can name and uninstall it

OFFICIAL_NAME = "detectron2"
OFFICIAL_URL = "https://github.com/facebookresearch/detectron2"
# HEAD of main when this was written (02b5c4e), in full because git resolves no short id remotely.
OFFICIAL_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"

DROPPED_REQUIREMENTS = ("numpy<2",)
ADDED_REQUIREMENTS = ("fvcore<0.1.6,>=0.1.5", "iopath<0.2,>=0.1.9", "setuptools<82")
COMPILED_SUFFIXES = (".so", ".pyd", ".dylib")
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


class InstallError(Exception):
    """What stops the installation, as one line for the user."""


# ---------------------------------------------------------------- repacking the registry wheel


def wheel_name(version: str) -> str:
    """File name of the repacked wheel."""
    return f"{REGISTRY_NAME.replace('-', '_')}-{version}-py3-none-any.whl"


def check_hash(path: Path, expected: str) -> None:
    """Raises InstallError unless the file has this SHA-256 (hex)."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(
            f"wrong hash of {path.name}: SHA-256 is {found}, expected {expected}; "
            "nothing was installed"
        )


def edit_metadata(text: str) -> str:
    """METADATA with our version and requirements; order and everything else stay."""
    header, separator, body = text.partition("\n\n")
    lines: list[str] = []
    last_requirement = 0  # the additions go behind the last requirement that belongs to no extra
    for line in header.split("\n"):
        key, _, value = line.partition(": ")
        if key == "Requires-Dist" and value in DROPPED_REQUIREMENTS:
            continue
        lines.append(f"Version: {REPACKED_VERSION}" if key == "Version" else line)
        if key in ("Version", "Requires-Dist") and "extra ==" not in value:
            last_requirement = len(lines)
    additions = [f"Requires-Dist: {requirement}" for requirement in ADDED_REQUIREMENTS]
    lines[last_requirement:last_requirement] = additions
    return "\n".join(lines) + separator + body


def edit_wheel_tags(text: str) -> str:
    """WHEEL for a pure-Python wheel of any Python 3."""
    kept = [line for line in text.strip().split("\n") if not line.startswith(("Root-Is", "Tag"))]
    return "\n".join([*kept, "Root-Is-Purelib: true", "Tag: py3-none-any"]) + "\n"


def _is_dropped(name: str) -> bool:
    return name.startswith("tools/") or name.endswith(COMPILED_SUFFIXES)


def repack(source: Path, folder: Path) -> Path:
    """Writes the wheel that we install into `folder` and returns its path.

    Left out: the compiled part (for one Python only, and nobody has audited it) and the top-level
    package `tools` (it would shadow everyone's). Changed: the tag (the original's is refused by
    every Python but 3.10) and the requirements (numpy 2 works; three were missing). The licence
    stays. Entries are stored uncompressed with a fixed time: the bytes depend on the input alone,
    not on the zlib at hand.
    """
    old_info = f"{REGISTRY_NAME.replace('-', '_')}-{REGISTRY_VERSION}.dist-info/"
    new_info = f"{REGISTRY_NAME.replace('-', '_')}-{REPACKED_VERSION}.dist-info/"
    target = folder / wheel_name(REPACKED_VERSION)
    partial = folder / (target.name + ".partial")
    record: list[str] = []
    with zipfile.ZipFile(source) as wheel, zipfile.ZipFile(partial, "w") as packed:

        def write(name: str, data: bytes, mode: int) -> None:
            entry = zipfile.ZipInfo(name, ZIP_EPOCH)
            entry.create_system = 3  # Unix, whatever runs this
            entry.external_attr = mode << 16
            packed.writestr(entry, data, zipfile.ZIP_STORED)

        for item in wheel.infolist():
            name = item.filename
            if item.is_dir() or _is_dropped(name) or name == old_info + "RECORD":
                continue
            data = wheel.read(item)
            if name == old_info + "METADATA":
                data = edit_metadata(data.decode()).encode()
            elif name == old_info + "WHEEL":
                data = edit_wheel_tags(data.decode()).encode()
            elif name == old_info + "top_level.txt":
                data = b"detectron2\n"
            if name.startswith(old_info):
                name = new_info + name[len(old_info) :]
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            write(name, data, 0o100755 if item.external_attr >> 16 & 0o100 else 0o100644)
        record.append(f"{new_info}RECORD,,")
        write(new_info + "RECORD", ("\n".join(record) + "\n").encode(), 0o100644)
    os.replace(partial, target)
    return target


# ---------------------------------------------------------------------------- looking around


def check_python(version: Sequence[int] = sys.version_info) -> None:
    """Raises InstallError on a Python that torch and numpy of today, or we, do not support."""
    first, end = PYTHON_RANGE
    if not first <= tuple(version[:2]) < end:
        raise InstallError(
            f"Python {version[0]}.{version[1]} is not supported: use Python "
            f"{first[0]}.{first[1]} to {end[0]}.{end[1] - 1}"
        )


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_detectron2() -> Path | None:
    """Folder of the package that `import detectron2` would take, without importing it."""
    spec = importlib.util.find_spec("detectron2")
    # A folder without __init__.py (a clone beside us, leftovers) is no Detectron2: origin is None.
    return Path(spec.origin).parent if spec and spec.origin else None


def imported_version(folder: Path) -> str:
    """Version that detectron2 says it has, by importing it in a process of its own."""
    code = "import detectron2; print('version', detectron2.__version__)"
    # -P: without the current folder, where a clone called detectron2 might lie.
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().split("\n") or [""])[-1]
        raise InstallError(
            f"detectron2 is installed in {folder} but cannot be imported: {reason}; repair or "
            "uninstall it first"
        )
    return result.stdout.split()[-1]


def check_no_other(source: str, other: str) -> None:
    """Raises InstallError where another distribution already owns the package detectron2."""
    version = installed_version(other)
    if version:
        raise InstallError(
            f"{other} {version} is installed and owns the same files as --source {source}: use it "
            f"(--source auto), or `{sys.executable} -m pip uninstall {other}` first"
        )
    own = OFFICIAL_NAME if source == "official" else REGISTRY_NAME
    folder = find_detectron2()
    if folder and not installed_version(own):
        raise InstallError(
            f"a detectron2 that pip does not know is importable from {folder}: use it "
            "(--source auto), or take it off the path first"
        )


# ---------------------------------------------------------------------------------- pip


def run_pip(arguments: Sequence[str], *, quiet: bool = False) -> tuple[int, str]:
    """Runs this Python's pip; returns its exit status and what it wrote to stderr."""
    command = [sys.executable, "-m", "pip", *arguments]
    output = subprocess.DEVNULL if quiet else None
    result = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    return result.returncode, result.stderr


def explain(what: str, output: str) -> InstallError:
    """The error behind pip's output, in one line."""
    if "No module named pip" in output:
        return InstallError(f"{what}: this Python has no pip ({sys.executable} -m ensurepip)")
    if "DO NOT MATCH THE HASHES" in output:
        return InstallError(f"{what}: wrong hash, expected SHA-256 {REGISTRY_SHA256}")
    errors = [line for line in output.split("\n") if line.lower().startswith("error")]
    reason = (errors or output.strip().split("\n"))[-1].strip()
    signs = ("Retrying (", "ConnectionError", "NewConnectionError", "Name or service not known")
    if any(sign in output for sign in signs) or "Could not resolve host" in output:
        return InstallError(f"{what}: the network or the package registry was not reached")
    return InstallError(f"{what}: {reason}")


def download_registry_wheel(folder: Path) -> Path:
    """Fetches the pinned wheel into `folder` through pip, its hash checked by pip and by us."""
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{REGISTRY_NAME}=={REGISTRY_VERSION} --hash=sha256:{REGISTRY_SHA256}\n"
    )
    # The file is tagged cp310: any other Python gets it only by asking in 3.10's name.
    options = "--no-deps --only-binary=:all: --python-version 3.10 --require-hashes".split()
    arguments = ["download", *options, "--dest", str(folder), "--requirement", str(requirements)]
    status, output = run_pip(arguments, quiet=True)
    if status:
        raise explain(f"cannot download {REGISTRY_NAME} {REGISTRY_VERSION}", output)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InstallError(f"pip download left {len(wheels)} wheels in {folder}, expected one")
    check_hash(wheels[0], REGISTRY_SHA256)
    return wheels[0]


def _constraint_options(constraints: Path | None) -> list[str]:
    return ["--constraint", str(constraints)] if constraints else []


def install_registry(constraints: Path | None, wheel_dir: Path | None, dry_run: bool) -> None:
    """Downloads, repacks and installs the registry wheel with its dependencies."""
    check_no_other("registry", OFFICIAL_NAME)
    present = installed_version(REGISTRY_NAME) == REPACKED_VERSION
    if present and not wheel_dir:
        print(f"{REGISTRY_NAME} {REPACKED_VERSION} is already installed in {find_detectron2()}")
        return
    print(f"Detectron2: {REGISTRY_NAME} {REGISTRY_VERSION} by hash, repacked as {REPACKED_VERSION}")
    if dry_run:
        print(f"(dry run) would download sha256:{REGISTRY_SHA256}, repack and install it")
        return
    with tempfile.TemporaryDirectory(prefix="mpn_d2_") as temporary:
        links = Path(temporary, "repacked")
        links.mkdir()
        wheel = repack(download_registry_wheel(Path(temporary)), links)
        if wheel_dir:
            wheel_dir.mkdir(parents=True, exist_ok=True)
            partial = wheel_dir / (wheel.name + ".partial")
            shutil.copyfile(wheel, partial)
            os.replace(partial, wheel_dir / wheel.name)
            print(f"Repacked wheel kept: {wheel_dir / wheel.name}")
        if present:
            return
        pin = f"{REGISTRY_NAME}=={REPACKED_VERSION}"
        options = ["--find-links", str(links), *_constraint_options(constraints)]
        status, output = run_pip(["install", *options, pin])
        if status:
            raise explain(f"cannot install {pin}", output)


def install_official(constraints: Path | None, dry_run: bool) -> None:
    """Builds and installs the pinned official commit."""
    check_no_other("official", REGISTRY_NAME)
    version = installed_version(OFFICIAL_NAME)
    if version:
        print(f"{OFFICIAL_NAME} {version} is already installed in {find_detectron2()}")
        return
    if not shutil.which("git"):
        raise InstallError("--source official needs git, and there is none on the PATH")
    compilers = (*shlex.split(os.environ.get("CXX", ""))[:1], "c++", "g++", "clang++")
    if not any(shutil.which(compiler) for compiler in compilers):
        raise InstallError(
            "--source official needs a C++ compiler (g++ or clang++), and there is none on the "
            "PATH; --source registry needs none"
        )
    for module in ("torch", "setuptools"):
        if importlib.util.find_spec(module) is None:
            raise InstallError(
                f"--source official needs {module} in this environment before it can build: "
                f"`{sys.executable} -m pip install {module}` first"
            )
    url = f"git+{OFFICIAL_URL}@{OFFICIAL_COMMIT}"
    print(f"Detectron2: building {url} (a minute or more)")
    if dry_run:
        print("(dry run) would build and install it")
        return
    options = ["--no-build-isolation", *_constraint_options(constraints)]
    status, output = run_pip(["install", *options, url])
    if status:
        raise explain(f"cannot build {OFFICIAL_NAME} at {OFFICIAL_COMMIT[:7]}", output)


# ------------------------------------------------------------------------------ command line


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=("auto", "official", "registry"), default="auto")
    parser.add_argument("--constraints", type=Path, metavar="F", help="constraints file for pip")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="keep the repacked wheel")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Does what the options say; raises InstallError."""
    check_python()
    if options.constraints and not options.constraints.is_file():
        raise InstallError(f"no such constraints file: {options.constraints}")
    if options.source == "official":
        install_official(options.constraints, options.dry_run)
        return
    folder = find_detectron2()
    if options.source == "auto" and folder:
        print(f"Detectron2 {imported_version(folder)} is used as it is: {folder}")
        return
    install_registry(options.constraints, options.wheel_dir, options.dry_run)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(parse_arguments(arguments))
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install_detectron2: {error.filename or 'file'}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
