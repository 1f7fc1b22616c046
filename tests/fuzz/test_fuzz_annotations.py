"""Annotation files: loaded, mapped for training, and taken as truth of an evaluation."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from mutations import DELETED, FUZZ, JUNK, MUTATIONS, answer, mutated, places, put

from mpn_d2.config import load_config
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts, register_people
from mpn_d2.evaluation.pose_evaluator import PoseEvaluator
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
IMAGES = REPO / "datasets" / "coco_sample" / "train"
COCO = get_skeleton("coco")


def good() -> dict:
    """Three bundled photographs with their people, and a crowd with an RLE mask."""
    file = IMAGES.parent / "annotations" / "person_keypoints_train.json"
    content = json.loads(file.read_text())
    # What is read alone; no info, no licences.
    used = ("id", "file_name", "width", "height")
    images = [{key: image[key] for key in used} for image in content["images"][:3]]
    kept = {x["id"] for x in images}
    people = [x for x in content["annotations"] if x["image_id"] in kept][:6]
    size = [images[0]["height"], images[0]["width"]]
    crowd = {
        **{"id": 999, "image_id": images[0]["id"], "category_id": 1, "iscrowd": 1},
        **{"bbox": [0, 0, 10, 10], "area": 100, "num_keypoints": 0, "keypoints": [0] * 51},
        "segmentation": {"size": size, "counts": [0, 10, size[0] * size[1] - 10]},
    }
    categories = content["categories"]
    return {"images": images, "annotations": [*people, crowd], "categories": categories}


GOOD = good()
MAPPER = PoseDatasetMapper(load_config(str(REPO / "configs/quick/demo.yaml")), is_train=True)


def use(file: Path, root: Path) -> None:
    """All that reads annotations: loading, the mapper on every image, truth and a scored pose."""
    register_people("fuzzed", json_file=str(file), image_root=str(root), skeleton=COCO)
    for record in load_pose_dicts("fuzzed", is_train=True):
        MAPPER(record)
    evaluator = PoseEvaluator("fuzzed", tasks=("bbox", "keypoints"), sigmas=COCO.sigmas,
                              distributed=False)  # fmt: skip
    image = next(iter(evaluator.truth.imgs))
    row = {"image_id": image, "category_id": 1, "score": 0.5, "keypoints": [1.0] * 51}
    evaluator.score_rows({"keypoints": [row]})


def check(tmp_path: Path, content: object, kind: str = "mixed", root: Path = IMAGES) -> str:
    file = tmp_path / "fuzzed.json"
    # As a program would write them that knows nothing of JSON's rules: NaN, lone surrogates.
    file.write_text(json.dumps(content), encoding="utf-8")
    names = str(file), "fuzzed", str(root)
    return answer(f"annotations, {kind}", lambda: use(file, root), *names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed annotations")


def test_the_document_itself_is_good(folder):
    assert check(folder, GOOD) == "result"


@FUZZ
@given(mutations=MUTATIONS)
@example(mutations=[([1, 0, 2], "replace", [math.nan] * 4)])
def test_annotations(folder, mutations):
    check(folder, mutated(GOOD, mutations))


@FUZZ
@given(content=JUNK)
def test_something_else_than_annotations(folder, content):
    assert check(folder, content) == "refused"


# ------------------------------------------------------------- what is known to be dangerous

NUMBERS = places(GOOD, int, float)
VALUES = places(GOOD, int, float, str, list, dict)
KEYS = [place for place in VALUES if isinstance(place[-1], str)]
CROWD = ("annotations", len(GOOD["annotations"]) - 1)


@FUZZ
@given(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
def test_missing_keys(folder, keys):
    content = GOOD
    # Longest ways first: a key inside another that goes is there until then.
    for key in sorted(keys, key=len, reverse=True):
        content = put(content, key, DELETED)
    check(folder, content, "missing keys")


def value_at(place: tuple) -> object:
    inner: object = GOOD
    for key in place:
        inner = inner[key]
    return inner


@FUZZ
@given(place=st.sampled_from(VALUES), value=JUNK)
@example(place=("images", 0, "id"), value=True)
@example(place=("annotations", 0, "id"), value=True)
@example(place=("annotations", 0, "num_keypoints"), value="x")
def test_wrong_types(folder, place, value):
    assume(type(value) is not type(value_at(place)))
    ended = check(folder, put(GOOD, place, value), "wrong types")
    if isinstance(value, bool) and place[-1] in ("id", "image_id", "category_id"):
        assert ended == "refused"


HUGE = st.one_of(
    st.sampled_from([2**31, 2**63, -(2**70), 10**30, 10**300, 10**400, 1e18, 1e308, -1e308]),
    st.integers(5, 4000).map(lambda digits: 10**digits),
    st.floats(1e5, allow_infinity=False, allow_nan=False),
)


@FUZZ
@given(place=st.sampled_from(NUMBERS), value=HUGE)
@example(place=("annotations", 0, "keypoints", 0), value=10**300)
@example(place=("annotations", 0, "area"), value=1e308)
def test_huge_numbers(folder, place, value):
    ended = check(folder, put(GOOD, place, value), "huge numbers")
    if place[-2] in ("bbox", "keypoints") and value > 1e5:
        assert ended == "refused"


@FUZZ
@given(place=st.sampled_from(NUMBERS), value=st.sampled_from([math.nan, math.inf, -math.inf]))
@example(place=("images", 0, "id"), value=math.nan)
@example(place=("categories", 0, "id"), value=math.nan)
@example(place=("annotations", 0, "num_keypoints"), value=math.nan)
def test_not_finite_numbers(folder, place, value):
    ended = check(folder, put(GOOD, place, value), "NaN and infinity")
    # A category's `skeleton` is for drawing alone: what names no joint goes.
    assert ended == "refused" or "skeleton" in place


@FUZZ
@given(
    kind=st.sampled_from(["images", "annotations", "categories"]),
    pair=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    whole=st.booleans(),
    write=st.sampled_from([int, float, str]),
)
def test_duplicate_ids(folder, kind, pair, whole, write):
    content = copy.deepcopy(GOOD)
    entries = content[kind]
    first = entries[pair[0] % len(entries)]
    other = {**first} if whole else {**entries[pair[1] % len(entries)]}
    other["id"] = write(first["id"])  # 5 and 5.0 are one number
    entries.append(other)
    ended = check(folder, content, "duplicate ids")
    assert ended == "refused" or (write is str and kind != "images")


def compressed(height: int, width: int) -> str:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[height // 3 :, width // 4 : width // 2] = 1
    return mask_util.encode(mask)["counts"].decode()


HEIGHT, WIDTH = GOOD["annotations"][-1]["segmentation"]["size"]
RIGHT = compressed(HEIGHT, WIDTH)


@FUZZ
@given(
    size=st.one_of(
        st.just([HEIGHT, WIDTH]),
        st.just([WIDTH, HEIGHT]),
        st.lists(st.one_of(st.integers(-2, 2**40), st.floats()), min_size=1, max_size=3),
    ),
    counts=st.one_of(
        st.text(alphabet=[chr(c) for c in range(40, 120)], max_size=30),
        st.integers(0, len(RIGHT) - 1).map(lambda keep: RIGHT[:keep]),
        st.integers(0, len(RIGHT) - 1).map(lambda at: RIGHT[:at] + "O" + RIGHT[at + 1 :]),
        st.tuples(st.integers(1, 900), st.integers(1, 900)).map(lambda s: compressed(*s)),
        st.lists(st.integers(-5, HEIGHT * WIDTH), max_size=5),
        st.lists(st.floats(), max_size=3),
    ),
)
@example(size=[HEIGHT, WIDTH], counts="")
@example(size=[HEIGHT, WIDTH], counts="abc")
@example(size=[HEIGHT, WIDTH], counts="0" * 100_000)
@example(size=[HEIGHT, WIDTH], counts=[5])
@example(size=[float(HEIGHT), WIDTH], counts=[HEIGHT * WIDTH])
def test_rle_of_the_wrong_size(folder, size, counts):
    check(folder, put(GOOD, (*CROWD, "segmentation"), {"size": size, "counts": counts}), "RLE")


def test_right_rle_is_read(folder):
    for counts in (RIGHT, [HEIGHT * WIDTH], [0, 7, HEIGHT * WIDTH - 7]):
        segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
        assert check(folder, put(GOOD, (*CROWD, "segmentation"), segmentation), "RLE") == "result"


TEXTS = [place for place in places(GOOD, str) if "annotations" not in place]
TEXTS += [("annotations", 0, "id"), ("images", 0, "id"), ("categories", 0, "id")]


@FUZZ
@given(place=st.sampled_from(TEXTS), text=st.text(max_size=30))
@example(place=("images", 0, "file_name"), text="a" * 5000)
@example(place=("images", 0, "file_name"), text="\x1b[31mred\x00.jpg")
@example(place=("annotations", 0, "id"), text="\ud800")
@example(place=("images", 0, "id"), text="a" * 5000)
def test_unicode_names(folder, place, text):
    check(folder, put(GOOD, place, text), "unicode names")


@FUZZ
@given(stem=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1,
                    max_size=40))  # fmt: skip
@example(stem="\u4eba\u7269 \u00e9\u0301\U0001f3c3")
def test_unicode_names_of_files_that_exist(folder, stem):
    name = f"{stem.replace('/', '_')}.jpg"
    root = folder / "unicode"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(IMAGES, root)
    shutil.copy(IMAGES / GOOD["images"][0]["file_name"], root / name)
    content = put(GOOD, ("images", 0, "file_name"), name)
    assert check(folder, content, "unicode names", root) == "result"


PHOTO = GOOD["images"][0]["file_name"]


@FUZZ
@given(
    before=st.lists(st.sampled_from(["..", ".", "a", "", "..\\", "~"]), max_size=6),
    name=st.sampled_from(["etc/passwd", "secret.jpg", "dev/zero", "..", PHOTO]),
    absolute=st.booleans(),
)
@example(before=[".", ""], name=PHOTO, absolute=False)
@example(before=[".."], name="secret.jpg", absolute=False)
@example(before=[], name="etc/passwd", absolute=True)
def test_path_traversal(folder, before, name, absolute):
    root = folder / "inside"
    shutil.copytree(IMAGES, root, dirs_exist_ok=True)
    shutil.copy(IMAGES / GOOD["images"][0]["file_name"], folder / "secret.jpg")
    given_name = "/" * absolute + "/".join([*before, name])
    content = put(GOOD, ("images", 0, "file_name"), given_name)
    ended = check(folder, content, "path traversal", root)
    inside = not given_name.startswith("/") and os.path.normpath(given_name)[:2] != ".."
    assert ended == "refused" or (inside and (root / given_name).is_file())


@FUZZ
@given(
    points=st.integers(3, 4000),
    x=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    y=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
)
@example(points=3000, x=(0, 640), y=(0, 480))
@example(points=150, x=(-1e5, 1e5), y=(-1e5, 1e5))
@example(points=40, x=(-1e5, 1e5), y=(0, 1))
@example(points=200_000, x=(1, 2), y=(1, 2))
def test_long_outlines(folder, points, x, y):
    there = [v for i in range(points) for v in (x[i % 2], y[i // 2 % 2])]
    check(folder, put(GOOD, ("annotations", 0, "segmentation"), [there]), "outlines")


LONG = "a" * 5000


@pytest.mark.parametrize("value", [LONG, [LONG], {LONG: LONG}, [math.nan] * 5000], ids=type)
@pytest.mark.parametrize("where", [*GOOD["images"][0], *GOOD["annotations"][0], "name", "names"])
def test_long_values_are_shortened(folder, where, value, capsys):
    place = {
        "name": ("categories", 0, "name"),
        "names": ("categories", 0, "keypoints", 3),
    }.get(where) or (("annotations" if where in GOOD["annotations"][0] else "images"), 0, where)
    file = folder / "long.json"
    file.write_text(json.dumps(put(GOOD, place, value)))
    with contextlib.suppress(ValueError, FileNotFoundError):
        try:
            use(file, IMAGES)
        except (ValueError, FileNotFoundError) as error:
            assert len(str(error)) < 600 + len(str(file)), str(error)
            raise


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_other_encodings(folder, encoding):
    file = folder / "encoded.json"
    file.write_text(json.dumps(GOOD), encoding=encoding)
    assert answer("annotations, mixed", lambda: use(file, IMAGES), str(file)) == "refused"
