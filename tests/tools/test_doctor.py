"""mpn_d2/doctor.py: what is there, what lacks, how to get it, and the exit code."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mpn_d2.doctor

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture()
def doctor(monkeypatch, tmp_path):
    """The doctor with its processes answered at once; their code runs in `test_here`."""
    module = mpn_d2.doctor
    module.torch_report.cache_clear()
    monkeypatch.setattr(module, "run_python", lambda code: (True, "runs|"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    yield module
    module.torch_report.cache_clear()


def lines(text: str, state: str) -> dict[str, str]:
    """What a state was given to, and the details."""
    found = [x.strip().removeprefix(state) for x in text.splitlines() if x.startswith(f"  {state}")]
    return dict(x.strip().split(": ", 1) for x in found)


def run_here(code: str) -> tuple[bool, str]:
    """As the tool's `run_python`, in this process, which has imported everything already."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    return True, said.getvalue().strip().splitlines()[-1]


def test_here(doctor, mpn_data, monkeypatch, capsys):
    """Every check runs for real, though not in processes of their own: these take a minute."""
    monkeypatch.setattr(doctor, "run_python", run_here)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mpn_data))
    code, out = doctor.main(), capsys.readouterr().out
    assert code == 0, out
    fine = lines(out, "ok")
    assert fine["torch"] == torch.__version__.split("+")[0]
    assert fine["torchvision's operators"] == "nms runs"
    assert fine["pycocotools' masks"] == "area runs" and fine["OpenCV"] == "resize runs"
    assert fine["mpn_d2"].endswith(str(REPO / "mpn_d2"))
    assert fine["COCO 2017 keypoints, training"].startswith(str(mpn_data))
    assert "CrowdPose" in lines(out, "-")
    assert out.endswith("mpn_d2 can run here\n")


def test_what_is_missing_is_named(doctor, monkeypatch, capsys):
    real = doctor.is_there
    monkeypatch.setattr(doctor, "is_there", lambda x: x not in ("scipy", "h5py") and real(x))
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert lines(out, "MISSING") == {
        "scipy": "needed for matching hungarian, blur: make setup, or pip install scipy"
    }
    assert "pip install 'mpn_d2[convert]'" in lines(out, "-")["h5py"]
    assert out.endswith("mpn_d2 cannot run here, missing: scipy\n")


def test_parts_that_do_not_fit_are_missing(doctor, monkeypatch, capsys):
    def broken(code: str) -> tuple[bool, str]:
        if "torchvision" in code:
            return False, "RuntimeError: operator torchvision::nms does not exist"
        return True, "runs|"

    monkeypatch.setattr(doctor, "run_python", broken)
    assert doctor.main() == 1
    [(what, detail)] = lines(capsys.readouterr().out, "MISSING").items()
    assert what == "torchvision's operators" and "nms does not exist" in detail
    assert "make setup in a new environment" in detail


def test_a_package_that_cannot_be_imported(doctor, monkeypatch, capsys):
    def broken(code: str) -> tuple[bool, str]:
        return "import mpn_d2" not in code, "runs|"

    monkeypatch.setattr(doctor, "run_python", broken)
    assert doctor.main() == 1
    assert "make setup" in lines(capsys.readouterr().out, "MISSING")["mpn_d2"]


def test_no_detectron2_and_an_old_python(doctor, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "detectron2_folder", lambda: None)
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 2))
    assert doctor.main() == 1
    missing = lines(capsys.readouterr().out, "MISSING")
    assert "tools/install_detectron2.py" in missing["Detectron2"]
    assert "make setup PYTHON=" in missing["Python 3.11 to 3.13"]


def test_gpus(doctor, monkeypatch):
    [none] = doctor.check_gpu()
    assert none.state == doctor.NOTE and none.detail.startswith(("none", "PyTorch sees none"))
    doctor.torch_report.cache_clear()
    monkeypatch.setattr(
        doctor, "run_python", lambda code: (True, "nms runs|One, 8 GiB; Two, 16 GiB")
    )
    [found] = doctor.check_gpu()
    assert found.state == doctor.OK and found.detail == "One, 8 GiB; Two, 16 GiB"


def test_datasets(doctor, tmp_path):
    found = {x.what: x for x in doctor.check_datasets()}
    assert found["folder of datasets"].state == doctor.NOTE
    assert "SegmentationClass" in found["PASCAL VOC 2012 segmentation"].detail
    (tmp_path / "data/VOCdevkit/VOC2012/SegmentationClass").mkdir(parents=True)
    (tmp_path / "data/coco/val2017").mkdir(parents=True)
    found = {x.what: x for x in doctor.check_datasets()}
    assert found["PASCAL VOC 2012 segmentation"].state == doctor.OK
    coco = found["COCO 2017 keypoints, validation"]
    assert coco.state == doctor.NOTE and "person_keypoints_val2017.json;" in coco.detail
    assert "val2017," not in coco.detail.split(";")[0]


def test_a_failing_process_says_why(doctor, monkeypatch):
    monkeypatch.undo()
    works, said = doctor.run_python("print('a'); print('b')")
    assert works and said == "b"
    works, said = doctor.run_python("raise RuntimeError('no such thing')")
    assert not works and said == "RuntimeError: no such thing"


def test_a_process_that_hangs_is_given_up(doctor, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    works, said = doctor.run_python("import time; time.sleep(60)")
    assert not works and said.startswith("no answer for 0.5 s (importing it hangs")


def test_it_imports_python_alone():
    tree = ast.parse((REPO / "mpn_d2" / "doctor.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert not foreign, foreign


def run_bare(how: list[str], folder: Path) -> subprocess.CompletedProcess:
    """-S: a Python without its site-packages, so without PyTorch, Detectron2 and the rest."""
    return subprocess.run(
        [sys.executable, "-S", *how],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("how", [["-m", "mpn_d2.doctor"], [str(REPO / "tools" / "doctor.py")]])
def test_it_answers_where_nothing_is_installed(how, tmp_path):
    done = run_bare(how, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    missing = lines(done.stdout, "MISSING")
    assert {"torch", "numpy", "cv2", "Detectron2"} <= set(missing)
    assert "tools/install_detectron2.py" in missing["Detectron2"]
    assert lines(done.stdout, "-")["mpn_d2"] == "not tried, see MISSING"
    assert done.stdout.splitlines()[-1].startswith("mpn_d2 cannot run here, missing: torch, ")


def test_only_the_doctor_goes_without_detectron2(tmp_path):
    """Any other way to the package says in one line what it lacks."""
    for how in (["-c", "import mpn_d2.doctor"], ["-m", "mpn_d2.config"]):
        done = run_bare(how, tmp_path)
        assert done.returncode == 1
        assert "mpn_d2 needs Detectron2, which is not on PyPI" in done.stderr.splitlines()[-1]
