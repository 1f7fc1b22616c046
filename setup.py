"""Builds `mpn_d2`: the package alone, its configs inside it, no top-level `tools`.

All tests ran with one set of versions alone: torch 2.15.0, torchvision 0.29.2, numpy 2.4.6 on
Python 3.11 (all of them: constraints.txt). docs/versions.md says what else was tried (make
versions); lower bounds that it does not name were not run.
Detectron2 is not listed: it is not on the package index under its own name;
tools/install_detectron2.py gets it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

REQUIREMENTS = [
    "torch>=2.13,<2.16",
    "torchvision>=0.28,<0.30",
    "numpy>=2,<3",
    "scipy>=1.11",
    "pycocotools>=2.0.8",
    "fvcore>=0.1.5,<0.1.6",
    "matplotlib>=3.8",
    "setuptools>=77.0.3,<82",  # at run time: Detectron2 imports pkg_resources, gone from 82 on
]

EXTRAS = {
    "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.6", "mypy>=2.4", "hypothesis>=6.100"],
    # Files for other runtimes (tools/export_model.py).
    "export": ["onnx>=1.17", "onnxruntime>=1.20"],
    # Weights in HDF5 files (tools/convert_checkpoint.py); the tests need both.
    "convert": ["h5py>=3.10"],
    # ImageNet weights of timm's networks; the tests compare our trunks with them.
    "backbones": ["timm>=1.0"],
    # The site (make docs) and the notebook in it; the tests build the one and run the other.
    "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.29", "nbclient>=0.10", "ipykernel>=6.29"],
}

# Every build of OpenCV owns the package `cv2`; two of them in one environment break each other.
OTHER_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


def opencv_requirement() -> list[str]:
    """The headless OpenCV, unless this environment already has another build of it.

    Seen only where metadata is built in the user's environment (`--no-build-isolation`, as
    `make setup` does); an isolated build sees none and asks for the headless one.
    """
    for name in OTHER_OPENCV:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return []
    return ["opencv-python-headless>=4.8"]


def config_files() -> list[Path]:
    return sorted((ROOT / "configs").rglob("*.yaml"))


class BuildWithConfigs(build_py):
    """Copies configs/ to mpn_d2/configs; an editable install reads the repository's own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        if not config_files():
            raise SystemExit(f"mpn_d2 ships its configs, and there are none in {ROOT / 'configs'}")
        target = Path(self.build_lib, "mpn_d2", "configs")
        shutil.rmtree(target, ignore_errors=True)  # build/ may hold configs that are gone
        for file in config_files():
            copy = target / file.relative_to(ROOT / "configs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    def get_source_files(self) -> list[str]:
        """What a source distribution must hold for the wheel made from it."""
        return super().get_source_files() + [str(f.relative_to(ROOT)) for f in config_files()]


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


# Setuptools runs this file as __main__; tests and tools/setup_environment.py import its lists.
if __name__ == "__main__":
    setup(
        name="mpn_d2",
        version="0.1.0",
        description="Multi-person pose estimation as a Detectron2 extension",
        long_description=long_description(),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        license_files=["LICENSE"],
        packages=find_packages(include=["mpn_d2", "mpn_d2.*"]),
        package_data={"mpn_d2": ["weights/*"], "mpn_d2.data": ["layouts/*"]},
        python_requires=">=3.11,<3.14",
        classifiers=[
            "Operating System :: POSIX :: Linux",
            *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        ],
        install_requires=REQUIREMENTS + opencv_requirement(),
        extras_require=EXTRAS,
        entry_points={
            "console_scripts": [
                "mpn-train = mpn_d2.cli.train:run",
                "mpn-demo = mpn_d2.cli.demo:run",
            ]
        },
        cmdclass={"build_py": BuildWithConfigs},
    )
