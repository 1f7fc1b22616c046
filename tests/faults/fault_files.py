"""What lies in a folder: files under final names load, and what they hold can be compared."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import cv2
import torch
import yaml
from fault_runs import Lost
from PIL import Image

from mpn_d2.engine.checkpoint import TAG
from mpn_d2.utils.metrics_file import METRICS, read_metrics

# Names under which files are written before they get their own.
_PARTIAL = re.compile(r"\.partial|\.tmp\d+$|^\.aside-")
# Files that grow: a kill may leave their last line unfinished.
_GROWING = re.compile(r"^log\.txt|^events\.out\.tfevents|^metrics\.json$")
_SHARE = 1e-5
# Of a file of figures: when, where and how it was made.
_PROVENANCE = {"command", "commit", "date", "machine", "seconds"}


def is_partial(file: Path) -> bool:
    return bool(_PARTIAL.search(file.name))


def partial_files(folder: Path) -> list[Path]:
    """Files that a killed command has left behind under names that nobody reads."""
    return [file for file in files_in(folder) if is_partial(file)]


def files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def check_files(folder: Path) -> int:
    """How many files lie under final names; all of them load.

    Raises:
        Lost: one does not; names it.
    """
    files = [file for file in files_in(folder) if not is_partial(file)]
    for file in files:
        try:
            load(file)
        except Exception as error:
            raise Lost(f"{file} is broken: {type(error).__name__}: {error}") from error
    return len(files)


def load(file: Path) -> object:
    """What a file holds, to be compared; None for files that grow while a command runs."""
    kind = file.suffix
    if file.name == METRICS and file.stat().st_size:
        check_metrics(file)
    if _GROWING.match(file.name):
        return None
    if file.name == TAG:
        named = file.with_name(file.read_text())
        load(named)
        return file.read_text()
    if kind == ".pth":
        return torch.load(file, weights_only=True)
    if kind in (".json", ".gz"):
        data = gzip.decompress(file.read_bytes()) if kind == ".gz" else file.read_bytes()
        content = json.loads(data)
        if isinstance(content, dict) and _PROVENANCE <= set(content):
            content = {k: v for k, v in content.items() if k not in _PROVENANCE}
        return content
    if kind == ".yaml":
        content = yaml.safe_load(file.read_text())
        assert isinstance(content, dict), "it holds no keys"
        return content
    if kind in (".png", ".jpg"):
        with Image.open(file) as image:
            image.load()
        return file.read_bytes()
    if kind == ".onnx":
        import onnx

        onnx.checker.check_model(onnx.load(str(file)))
        return file.read_bytes()
    if kind == ".pt":
        return sorted(torch.jit.load(str(file)).state_dict().items())
    if kind == ".mp4":
        return frames(file)
    raise AssertionError("no file of this kind is expected here")


def check_metrics(file: Path) -> None:
    """All but the last line must be readable, through kills and new beginnings."""
    try:
        read_metrics(file)
    except ValueError as error:
        if "no values yet" not in str(error):
            raise


def frames(file: Path) -> list[bytes]:
    """The pictures of a video."""
    capture, found = cv2.VideoCapture(str(file)), []
    try:
        while (read := capture.read())[0]:
            found.append(read[1].tobytes())
    finally:
        capture.release()
    assert found, "it shows nothing"
    return found


def assert_same(reference: Path, folder: Path, inexact: tuple[str, ...] = ()) -> None:
    """Two folders hold the same under the same names; partial files aside.

    Args:
        reference, folder: the two.
        inexact: beginnings of names; tensors in these files may differ by _SHARE of their largest
            number, or of 1.

    Raises:
        Lost: they do not; names the files.
    """
    names = [
        {str(file.relative_to(place)) for file in files_in(place) if not is_partial(file)}
        for place in (reference, folder)
    ]
    # Each start of a training has a file of events of its own.
    both = [{name for name in found if "tfevents" not in name} for found in names]
    if both[0] != both[1]:
        raise Lost(
            f"{folder} lacks {sorted(both[0] - both[1])}, and {sorted(both[1] - both[0])} are new"
        )
    for name in sorted(both[0]):
        share = _SHARE if name.startswith(inexact) else 0.0
        difference = differs(load(reference / name), load(folder / name), share=share)
        if difference is not None:
            raise Lost(f"{folder / name} differs from that without a fault: {difference}")


def differs(a: object, b: object, path: str = "", share: float = 0.0) -> str | None:
    """Where two nested values differ, None where they are the same to the bit, or close."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return None if same and is_close(a, b, share) else path or "its content"
    if type(a) is not type(b):
        return path or "its content"
    if isinstance(a, dict):
        if set(a) != set(b):
            return f"{path}: other keys"
        pairs = [(f"{path}/{key}", a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{path}: {len(b)} entries instead of {len(a)}"
        pairs = [(f"{path}/{i}", x, y) for i, (x, y) in enumerate(zip(a, b))]
    else:
        return None if a == b else path or "its content"
    return next(
        (found for p, x, y in pairs if (found := differs(x, y, p, share)) is not None), None
    )


def is_close(a: torch.Tensor, b: torch.Tensor, share: float) -> bool:
    """Whether tensors are equal, or differ by `share` of the largest number, or of 1."""
    if not share or not a.numel():
        return torch.equal(a, b)
    largest = max(float(a.abs().max()), 1.0)
    return torch.allclose(a.float(), b.float(), rtol=0, atol=share * largest)
