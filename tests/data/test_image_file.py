"""Image files of every kind, written here and read again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn_d2.data.image_file import read_pose_image

COLOR = (200, 100, 50)
ORIENTATION = 0x0112  # the EXIF entry


def _picture() -> np.ndarray:
    """(5, 7, 3), no two pixels alike in all channels."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colour_of_other_modes(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    file = tmp_path / f"image.{suffix}"
    image = Image.new("RGB", (6, 5), COLOR)
    # Not convert("P"), which mixes the colours of a fixed palette.
    image = image.quantize() if mode == "P" else image.convert(mode)
    image.save(file, quality=100)
    with Image.open(file) as saved:
        assert saved.mode == ("RGB" if mode == "YCbCr" else mode)
    image = read_pose_image(file, "RGB")
    assert image.shape == (5, 6, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - COLOR).max() <= 3
    assert (read_pose_image(file, "BGR") == image[..., ::-1]).all()


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "image.png"
    Image.fromarray(_picture()).convert(mode).save(file)
    expected = np.asarray(Image.fromarray(_picture()).convert(mode).convert("L"))
    image = read_pose_image(file, "RGB")
    assert (image == expected[..., None]).all() and expected.std() > 10


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_cut(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"image.{suffix}"
    values = np.array([[0, 255, 256, 4000], [32767, 32768, 65000, 65535]], np.uint16)
    Image.fromarray(values).save(file)
    image = read_pose_image(file, "RGB")
    assert (image == np.round(values / 257)[..., None]).all()


def test_32_bits_with_8_bit_values_are_not_black(tmp_path: Path) -> None:
    values = np.array([[0, 1, 100, 255], [7, 8, 9, 10]], np.int32)
    Image.fromarray(values).save(tmp_path / "grey.tif")
    assert (read_pose_image(tmp_path / "grey.tif", "RGB") == values[..., None]).all()
    values[0, 3] = 256  # no 8 bits any more
    Image.fromarray(values).save(tmp_path / "grey.tif")
    assert read_pose_image(tmp_path / "grey.tif", "RGB").max() == 1
    # A dark picture of 16 bits: Pillow has the same mode for it, but the file tells.
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + bytes([0, 255, 0, 0]))
    with Image.open(tmp_path / "dark.pgm") as image:
        assert image.mode == "I"
    assert read_pose_image(tmp_path / "dark.pgm", "RGB").max() == 1


def test_size_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "map.png"
    Image.new("1", (20000, 10000)).save(file)
    with pytest.raises(
        ValueError, match=r"image .*map\.png is larger than 179 megapixels: reduce it$"
    ):
        read_pose_image(file, "RGB")


def test_numbers_that_are_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "numbers.tif"
    Image.fromarray(np.ones((3, 4), np.float32)).save(file)
    with pytest.raises(ValueError, match=r"numbers\.tif .*floating-point.*8 or 16 bits"):
        read_pose_image(file, "RGB", image_id=4)
    Image.fromarray(np.full((3, 4), 70000, np.int32)).save(file)
    with pytest.raises(ValueError, match=r"numbers\.tif .*more than 16 bits"):
        read_pose_image(file, "RGB", image_id=4)


# What the eight EXIF notes ask for, as operations on rows and columns.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("note", list(TURNS))
def test_exif_note_is_followed_where_the_annotation_allows_it(tmp_path: Path, note: int) -> None:
    file = tmp_path / "held.png"
    exif = Image.Exif()
    exif[ORIENTATION] = note
    picture = _picture()
    Image.fromarray(picture).save(file, exif=exif)
    turned = TURNS[note](picture)
    assert (read_pose_image(file, "RGB") == turned).all()
    assert (read_pose_image(file, "RGB", size=turned.shape[:2]) == turned).all()
    # Annotated on the picture as it is stored; a half turn cannot be told apart.
    stored = read_pose_image(file, "RGB", size=(5, 7))
    assert (stored == (turned if note < 5 else picture)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_note_is_none(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    Image.fromarray(_picture()).save(file, exif=b"Exif\0\0II*\0broken")
    assert (read_pose_image(file, "RGB") == _picture()).all()


def test_one_line_with_file_and_image(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    Image.fromarray(np.tile(_picture(), (20, 20, 1))).save(file)
    whole = file.read_bytes()
    with pytest.raises(
        ValueError, match=r"image\.jpg \(image_id 12\) is 140 x 100 pixels, annotated as 141 x 100"
    ) as info:
        read_pose_image(file, "RGB", size=(100, 141), image_id=12)
    assert "\n" not in str(info.value)
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:40]):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"image\.jpg \(image_id 12\) cannot be read: "
        ) as info:
            read_pose_image(file, "RGB", image_id=12)
        assert "\n" not in str(info.value)
    with pytest.raises(FileNotFoundError, match=r"none\.png \(image_id x\) not found"):
        read_pose_image(tmp_path / "none.png", "RGB", image_id="x")
    with pytest.raises(ValueError, match="cannot be read: .*directory"):
        read_pose_image(tmp_path, "RGB")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody writes into the pipe: opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (str(tmp_path / "pipe.jpg"), "/dev/zero", str(tmp_path)):
        with pytest.raises(ValueError, match=rf"^image {name} cannot be read: .*pipe or device"):
            read_pose_image(name, "RGB")


def test_names_are_shown_without_acting_on_the_terminal(tmp_path: Path) -> None:
    for name in ("\x1b[31mred\x00.jpg", "\ud800.jpg", "a" * 5000, "b/" * 3000):
        with pytest.raises((ValueError, FileNotFoundError)) as info:
            read_pose_image(tmp_path / name, "RGB", image_id="\x1b" + "c" * 5000)
        assert str(info.value).isprintable() and len(str(info.value)) < 1000
