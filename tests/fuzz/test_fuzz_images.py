"""Image files: truncated, with flipped bytes, of a false kind, or that claim to be huge."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import FUZZ, answer
from PIL import Image

from mpn_d2.data.image_file import read_pose_image

REPO = Path(__file__).resolve().parents[2]
FORMATS = ("jpeg", "png", "gif", "bmp", "tiff", "webp", "ppm")
EXTENSIONS = (".jpg", ".png", ".gif", ".txt", "", ".mp4", ".JPG ")


def packed() -> dict[str, bytes]:
    """A small part of a bundled photograph in several formats."""
    photo = Image.open(REPO / "datasets/coco_sample/train/000000000790.jpg").resize((40, 30))
    found = {}
    for name in FORMATS:
        buffer = io.BytesIO()
        photo.save(buffer, name)
        found[name] = buffer.getvalue()
    return found


GOOD = packed()


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG that claims a size, whatever its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed images")


def check(folder: Path, content: bytes, extension: str = ".jpg") -> str:
    file = folder / f"image{extension}"
    file.write_bytes(content)

    def use() -> None:
        image = read_pose_image(file, "BGR", image_id="\u00e4")
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert image.size > 0

    try:
        return answer("images", use, str(file))
    finally:
        file.unlink()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_files_themselves_are_good(folder, name, extension):
    assert check(folder, GOOD[name], extension) == "result"


@FUZZ
@given(
    name=st.sampled_from(FORMATS),
    extension=st.sampled_from(EXTENSIONS),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
    tail=st.binary(max_size=20),
)
@example(name="png", extension=".png", keep=0.0, flips=[], tail=b"")
def test_broken_images(folder, name, extension, keep, flips, tail):
    content = bytearray(GOOD[name])
    for place, value in flips:
        content[int(place * min(len(content), 200))] = value  # headers matter most
    check(folder, bytes(content[: int(keep * len(content))]) + tail, extension)


@FUZZ
@given(width=st.integers(0, 2**31), height=st.integers(0, 2**31), data=st.binary(max_size=100))
@example(width=50_000, height=50_000, data=b"")
@example(width=1, height=2**31 - 1, data=b"")
def test_images_that_claim_a_size(folder, width, height, data):
    check(folder, png_of(width, height, data))


@FUZZ
@given(content=st.binary(max_size=300))
def test_noise(folder, content):
    assert check(folder, content) == "refused"


@FUZZ
@given(name=st.text(max_size=20))
@example(name="\x1b[31m\x00")
@example(name="a" * 5000)
def test_names_of_files_that_are_not_there(folder, name):
    ended = answer("images", lambda: read_pose_image(f"{folder}/none/{name}", "RGB"), str(folder),
                   "...")  # fmt: skip
    assert ended == "refused"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file(folder, kind):
    file = folder / kind
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    assert answer("images", lambda: read_pose_image(file, "RGB"), str(file)) == "refused"
