"""What this machine has of what mpn_d2 needs, what is missing, and how to get it.

    python -m mpn_d2.doctor

(in the repository also: python tools/doctor.py). Versions, compiled parts, GPU, datasets. Exit code
0 where mpn_d2 can run, 1 where something that it needs is missing (lines with MISSING). Standard
library only, and nothing of the package: it answers where nothing else is there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The repository, or the site-packages that mpn_d2 was installed in.
ROOT = Path(__file__).resolve().parents[1]
IN_REPOSITORY = (ROOT / "tools" / "install_detectron2.py").is_file()
SET_UP = "make setup, or " if IN_REPOSITORY else ""
ANEW = "make setup in a new environment" if IN_REPOSITORY else "install all in a new environment"
DETECTRON2 = "python tools/install_detectron2.py" + (
    "" if IN_REPOSITORY else " of mpn_d2's repository, or github.com/facebookresearch/detectron2"
)
OK, MISSING, NOTE = "ok", "MISSING", "-"
LEAST_PYTHON, FIRST_UNKNOWN_PYTHON = (3, 11), (3, 14)
# Seconds for what is tried in a process of its own: on a busy machine PyTorch alone takes a minute.
PATIENCE = 180
# Modules with the distribution that has them, and what of ours needs them.
NEEDED = (
    ("torch", "torch", "everything"),
    ("torchvision", "torchvision", "everything"),
    ("numpy", "numpy", "everything"),
    ("scipy", "scipy", "matching hungarian, blur"),
    ("pycocotools", "pycocotools", "COCO's evaluation"),
    ("fvcore", "fvcore", "Detectron2"),
    ("matplotlib", "matplotlib", "drawing"),
    ("cv2", "opencv-python-headless", "images and videos"),
)
OPTIONAL = (
    ("h5py", "h5py", "convert", "tools/convert_checkpoint.py on .h5 files"),
    ("onnx", "onnx", "export", "export to ONNX"),
    ("onnxruntime", "onnxruntime", "export", "export to ONNX, checked"),
    ("timm", "timm", "backbones", "timm's networks"),
    ("pytest", "pytest", "test", "make test"),
)
# Name, what lies under the folder of datasets ("|" between places that will do), source.
DATASETS = (
    (
        "COCO 2017 keypoints, training",
        ("coco/annotations/person_keypoints_train2017.json", "coco/train2017"),
        "https://cocodataset.org/#download: train2017.zip, annotations_trainval2017.zip",
    ),
    (
        "COCO 2017 keypoints, validation",
        ("coco/annotations/person_keypoints_val2017.json", "coco/val2017"),
        "https://cocodataset.org/#download: val2017.zip, annotations_trainval2017.zip",
    ),
    (
        "CrowdPose",
        ("crowdpose/json|crowdpose/annotations", "crowdpose/images"),
        "https://github.com/jeffffffli/CrowdPose",
    ),
    ("OCHuman", ("OCHuman/images",), "https://github.com/liruilong940607/OCHumanApi"),
    (
        "PASCAL VOC 2012 segmentation",
        ("VOC2012/SegmentationClass|VOCdevkit/VOC2012/SegmentationClass",),
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012: VOCtrainval_11-May-2012.tar",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: OK, MISSING (mpn_d2 needs it) or NOTE (something works without it).
        what: the thing.
        detail: version or place; of what is not there, how to get it.
    """

    state: str
    what: str
    detail: str


def version_of(distribution: str) -> str:
    """Its version, "" where pip knows none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_there(module: str) -> bool:
    """Whether a module would be imported from a file; without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def check_python() -> list[Finding]:
    """The interpreter and the machine."""
    version = platform.python_version()
    if LEAST_PYTHON <= sys.version_info[:2] < FIRST_UNKNOWN_PYTHON:
        python = Finding(OK, "Python", f"{version} ({sys.executable})")
    else:
        how = "make setup PYTHON=python3.12" if IN_REPOSITORY else "install with another"
        python = Finding(MISSING, "Python 3.11 to 3.13", f"this is {version}: {how}")
    cores = os.cpu_count() or 1
    return [python, Finding(OK, "machine", f"{platform.platform()}, {cores} cores")]


def check_packages() -> list[Finding]:
    """Distributions by their versions, nothing imported."""
    findings = []
    for module, distribution, purpose in NEEDED:
        if is_there(module):
            version = version_of(distribution) or "found, but not by pip"
            findings.append(Finding(OK, module, version))
        else:
            findings.append(
                Finding(
                    MISSING,
                    module,
                    f"needed for {purpose}: {SET_UP}pip install {distribution}",
                )
            )
    for module, distribution, extra, purpose in OPTIONAL:
        if is_there(module):
            findings.append(Finding(OK, module, version_of(distribution)))
        else:
            how = f"pip install 'mpn_d2[{extra}]', or pip install {distribution}"
            findings.append(Finding(NOTE, module, f"not installed, for {purpose}: {how}"))
    return findings


def run_python(code: str) -> tuple[bool, str]:
    """Runs code in a process of its own (a library may end it or hang): (well?, last line)."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    # Of site-packages on PYTHONPATH the modules would come before those of Python itself.
    first = str(ROOT) if IN_REPOSITORY else ""
    path = os.pathsep.join(p for p in (first, os.environ.get("PYTHONPATH", "")) if p)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer for {PATIENCE} s (importing it hangs, or this machine is busy)"
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, said[-1] if said else f"exit code {done.returncode}"


@functools.cache
def torch_report() -> tuple[bool, str]:
    """An operator of torchvision on PyTorch's tensors, then the GPUs: "nms runs|a, 8 GiB; b"."""
    return run_python(
        "import torch, torchvision.ops as o; b = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2]]); "
        "assert o.nms(b, b[:, 2], 0.5).tolist() == [0]; n = torch.cuda.device_count(); "
        "print('nms runs|' + '; '.join(f'{torch.cuda.get_device_name(i)}, '"
        "f'{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB' "
        "for i in range(n)))"
    )


def check_compiled() -> list[Finding]:
    """Parts that were built for one version of another: they are used once."""
    findings = []
    repair = f"it does not fit the other versions here: {ANEW}"
    for module, what, code in (
        ("torchvision", "torchvision's operators", None),
        (
            "pycocotools",
            "pycocotools' masks",
            "import numpy as n, pycocotools.mask as m; "
            "assert m.area(m.encode(n.ones((2, 3), 'u1', order='F'))) == 6; print('area runs')",
        ),
        (
            "cv2",
            "OpenCV",
            "import cv2, numpy as n; "
            "assert cv2.resize(n.ones((4, 4), 'u1'), (2, 2)).shape == (2, 2); print('resize runs')",
        ),
    ):
        if is_there(module):
            works, said = run_python(code) if code else torch_report()
            detail = said.split("|")[0] if works else f"{said}: {repair}"
            findings.append(Finding(OK if works else MISSING, what, detail))
    return [*findings, *check_detectron2(), *check_ours()]


def detectron2_folder() -> Path | None:
    """Where Detectron2 lies; it is not imported."""
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec and spec.origin else None


def check_detectron2() -> list[Finding]:
    """Detectron2, and whether it has its own operators."""
    folder = detectron2_folder()
    if folder is None:
        return [Finding(MISSING, "Detectron2", SET_UP + DETECTRON2)]
    version = re.search(r'__version__ = "([^"]+)"', (folder / "__init__.py").read_text())
    findings = [Finding(OK, "Detectron2", f"{version[1] if version else '?'} ({folder})")]
    if any(folder.glob("_C*")):
        findings.append(Finding(OK, "Detectron2's operators", "compiled"))
    else:
        findings.append(
            Finding(
                NOTE,
                "Detectron2's operators",
                "not compiled; mpn_d2 needs none (rotated boxes and deformable ResNets would): "
                "build github.com/facebookresearch/detectron2"
                + (f", {DETECTRON2} --source official does" if IN_REPOSITORY else ""),
            )
        )
    return findings


def check_ours() -> list[Finding]:
    """mpn_d2 itself, importable (and Detectron2 with it), with configs and weights."""
    lacks = [module for module, _, _ in NEEDED if not is_there(module)]
    if lacks or detectron2_folder() is None:
        return [Finding(NOTE, "mpn_d2", "not tried, see MISSING")]
    works, said = run_python(
        "import mpn_d2; from mpn_d2.config_files import config_file as c; "
        "c('Base-Pose.yaml'); from importlib.resources import files; "
        "assert (files('mpn_d2') / 'weights' / 'assembler_coco.pth').is_file(), 'no weights'; "
        "print(mpn_d2.__version__, 'in', mpn_d2.__path__[0])"
    )
    detail = said if works else f"{said}: {ANEW}, and start again here"
    return [Finding(OK if works else MISSING, "mpn_d2", detail)]


def check_gpu() -> list[Finding]:
    """What PyTorch computes on."""
    if not is_there("torchvision"):
        return []
    works, said = torch_report()
    if not works:
        return [Finding(NOTE, "GPU", "not looked for, see torchvision's operators")]
    if said.partition("|")[2]:
        return [Finding(OK, "GPU", said.partition("|")[2])]
    driver = shutil.which("nvidia-smi")
    why = (
        "PyTorch sees none though nvidia-smi is here: check the driver's version"
        if driver
        else "none; on the CPU everything runs, slower"
    )
    return [Finding(NOTE, "GPU", why)]


def _bundled_photographs() -> Finding:
    sample = ROOT / "datasets" / "coco_sample" / "annotations" / "person_keypoints_train.json"
    if sample.is_file():
        return Finding(OK, "bundled photographs", str(sample.parents[1]))
    if IN_REPOSITORY:
        return Finding(MISSING, "bundled photographs", f"{sample} is gone: git checkout datasets")
    return Finding(NOTE, "bundled photographs", "in the repository alone, not in the package")


def check_datasets() -> list[Finding]:
    """The bundled photographs, and what lies under DETECTRON2_DATASETS."""
    findings = [_bundled_photographs()]
    named = os.environ.get("DETECTRON2_DATASETS")
    root = Path(named or "datasets").expanduser().absolute()
    where = "DETECTRON2_DATASETS" if named else "DETECTRON2_DATASETS is not set, so"
    state = OK if root.is_dir() else NOTE
    findings.append(Finding(state, "folder of datasets", f"{where} {root}"))
    for name, parts, source in DATASETS:
        found = [[place for place in x.split("|") if (root / place).exists()] for x in parts]
        lacks = [x.split("|")[0] for x, places in zip(parts, found) if not places]
        if lacks:
            detail = f"not found: {', '.join(lacks)}; {source}"
            findings.append(Finding(NOTE, name, detail))
        else:
            findings.append(Finding(OK, name, str(root / found[0][0])))
    return findings


def main() -> int:
    """Prints the report; 1 where something needed is missing."""
    sections = (
        ("Python", check_python),
        ("Packages", check_packages),
        ("Compiled parts", check_compiled),
        ("Processors", check_gpu),
        ("Datasets", check_datasets),
    )
    missing = []
    for title, check in sections:
        print(title)
        for finding in check():
            print(f"  {finding.state:8}{finding.what}: {finding.detail}", flush=True)
            if finding.state == MISSING:
                missing.append(finding.what)
    print()
    if missing:
        print(f"mpn_d2 cannot run here, missing: {', '.join(missing)}")
        return 1
    print("mpn_d2 can run here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
