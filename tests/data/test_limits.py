"""Inputs at the limits and one beyond: a result, or one line before memory is taken."""

from __future__ import annotations

import gzip
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn_d2.data import limits
from mpn_d2.data.annotation_cache import read_json
from mpn_d2.data.coco_file import check_coco_file
from mpn_d2.data.image_file import read_pose_image


def _header_of_png(path: Path, width: int, height: int) -> None:
    """A file that says how large its picture is, and has nothing of it."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + size
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(size)) + chunk
    path.write_bytes(start + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((65_536, 1), r"a side of more than 65,535 pixels: reduce or cut it$"),
        ((1, 2_000_000), r"a side of more than 65,535 pixels: reduce or cut it$"),
        ((20_000, 8_948), r"larger than 179 megapixels: reduce it$"),
        ((60_000, 60_000), r"larger than 179 megapixels: reduce it$"),
    ],
)
def test_larger_images_are_refused_by_their_header(tmp_path, size, words) -> None:
    _header_of_png(tmp_path / "large.png", *size)
    with pytest.raises(ValueError, match=rf"^image .*large\.png (is|has) {words}"):
        read_pose_image(tmp_path / "large.png", "RGB")
    content = _people(1)
    content["images"][0].update(width=size[0], height=size[1])
    (tmp_path / "people.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"^.*people\.json: image 7 (is|has) {words}"):
        check_coco_file(tmp_path / "people.json")


def test_images_at_the_limit_are_read(tmp_path, monkeypatch) -> None:
    Image.new("RGB", (65_535, 1), (1, 2, 3)).save(tmp_path / "thin.png")
    assert read_pose_image(tmp_path / "thin.png", "RGB").shape == (1, 65_535, 3)
    limits.check_image_size(13_377, 13_377, "image")  # 178.9 megapixels
    # The limit in small: Pillow's is half of ours, and it says nothing between the two.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("RGB", (10, 10)).save(tmp_path / "full.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pose_image(tmp_path / "full.png", "RGB").shape == (10, 10, 3)
    Image.new("RGB", (10, 11)).save(tmp_path / "over.png")
    with pytest.raises(ValueError, match=r"over\.png is larger than 0 megapixels: reduce it$"):
        read_pose_image(tmp_path / "over.png", "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    limits.check_image_size(60_000, 60_000, "image")


def test_dark_to_light_of_16_bits(tmp_path) -> None:
    """Every value, as exact division gives it: numbers of 32 bits hold 255 times 65,535."""
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "ramp.png")
    wanted = (values.astype(np.int64) * 255 + 32767) // 65535
    assert (read_pose_image(tmp_path / "ramp.png", "RGB") == wanted[..., None]).all()


def _people(count: int) -> dict:
    person = {"image_id": 7, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 9.0, "iscrowd": 0}
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 30, "height": 20}],
        "annotations": [{"id": i + 1, **person} for i in range(count)],
        "categories": [{"id": 1, "name": "person"}],
    }


def test_people_of_an_image(tmp_path) -> None:
    file = tmp_path / "people.json"
    file.write_text(json.dumps(_people(1000)))
    assert check_coco_file(file).people == 1000
    file.write_text(json.dumps(_people(1001)))
    with pytest.raises(ValueError, match=r"people\.json: image 7 has more than 1,000 people: cut"):
        check_coco_file(file)


def test_json_is_read_up_to_the_limit(tmp_path, monkeypatch) -> None:
    """Packed files by what they unpack to: 100,000 bytes are 130 here."""
    text = json.dumps(["a" * 99_996])
    plain, packed = tmp_path / "plain.json", tmp_path / "packed.json.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    assert packed.stat().st_size < 1000
    monkeypatch.setattr(limits, "MOST_JSON_BYTES", 100_000)
    assert read_json(plain)[0] == read_json(packed)[0] == ["a" * 99_996]
    monkeypatch.setattr(limits, "MOST_JSON_BYTES", 99_999)
    for file in (plain, packed):
        with pytest.raises(ValueError, match=rf"^.*{file.name} holds more than 99,999 bytes of J"):
            read_json(file)


def test_a_packed_file_that_fills_memory_stops_at_the_limit(tmp_path, monkeypatch) -> None:
    """A gigabyte of zeros in a megabyte: no more than the limit and a chunk is ever unpacked."""
    bomb = tmp_path / "bomb.json.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**24))
    unpacked = []
    real = gzip.GzipFile.read

    def counted(self, size=-1):
        data = real(self, size)
        unpacked.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    monkeypatch.setattr(limits, "MOST_JSON_BYTES", 2**24)
    with pytest.raises(ValueError, match=r"bomb\.json\.gz holds more than 16,777,216 bytes"):
        read_json(bomb)
    assert 2**24 < sum(unpacked) <= 2**25
