"""Faults of annotation files, for test_coco_file.py: changes of its content."""

from __future__ import annotations

from collections.abc import Callable

from mpn_d2.structures.skeleton import get_skeleton

K = get_skeleton("coco").num_keypoints


def second(**changes: object) -> Callable[[dict], object]:
    return lambda content: content["annotations"][1].update(changes)


def second_without(key: str) -> Callable[[dict], object]:
    return lambda content: content["annotations"][1].pop(key)


def image(**changes: object) -> Callable[[dict], object]:
    return lambda content: content["images"][1].update(changes)


def image_without(key: str) -> Callable[[dict], object]:
    return lambda content: content["images"][1].pop(key)


# What is wrong: how the file is changed, and what the message must say after its name.
FAULTS = {
    "annotation twice": (second(id=11), r"annotation 11 of image 1 is there twice"),
    "no id": (second_without("id"), r"annotation number 2 of image 1 has no 'id'"),
    "no bbox": (second_without("bbox"), r"annotation 12 of image 1 has no 'bbox': add"),
    "three numbers": (second(bbox=[1, 2, 3]), r"annotation 12 .* bbox \[1, 2, 3\]: give four"),
    "NaN": (second(bbox=[1, 2, 3, float("nan")]), r"annotation 12 .*bbox .*nan\]: give .*finite"),
    "infinite": (second(bbox=[1, 2, float("inf"), 4]), r"annotation 12 .*bbox .*inf"),
    "negative": (second(bbox=[1, 2, -3, 4]), r"annotation 12 .*bbox \[1, 2, -3, 4\].*negative"),
    "unknown category": (second(category_id=9), r"annotation 12 .*category_id 9, .*use one of 1$"),
    "no category": (second_without("category_id"), r"annotation 12 .* has no 'category_id'"),
    "no image": (second_without("image_id"), r"annotation 12 .* has no 'image_id'"),
    "two lengths": (second(keypoints=[1, 1, 2] * 14), r"annotation 12 .* 14 keypoints, .* 17"),
    "no triples": (second(keypoints=[1, 1, 2, 4]), r"annotation 12 .* finite numbers x, y, v"),
    "null joint": (second(keypoints=[None, 1, 2] * K), r"annotation 12 .* finite numbers x, y, v"),
    "flat polygon": (second(segmentation=[1, 1, 9, 1, 9, 9]), r"annotation 12 .*no list of poly"),
    "no categories": (lambda c: c.pop("categories"), r" has no categories: add"),
    "unnamed": (lambda c: c["categories"][0].pop("name"), r"a category has no 'id' or no 'name'"),
    "letters in a mask": (second(segmentation=[[1, 1, 9, 1, 9, "9"]]), r"annotation 12 .*polygon"),
    "RLE of another size": (
        second(segmentation={"size": [30, 20], "counts": [600]}),
        r"annotation 12 .*RLE mask of size \[30, 20\] .* image of \[20, 30\]",
    ),
    "RLE without counts": (second(segmentation={"size": [20, 30]}), r"annotation 12 .*'counts'"),
    "visibility 3": (second(keypoints=[4, 5, 3] * K), r"annotation 12 .*with v 3: give 0"),
    "crowding": (image(crowdIndex=33), r"image 2 has crowdIndex 33: it lies from 0 to 1"),
    "no list": (lambda c: c.update(annotations=None), r"'annotations' is no list"),
    "image twice": (image(id=1), r"image 1 is there twice"),
    "no image id": (image_without("id"), r"image number 2 has no 'id'"),
    "no width": (image_without("width"), r"image 2 has no 'width'"),
    "no height": (image_without("height"), r"image 2 has no 'height'"),
    "no file name": (image_without("file_name"), r"image 2 has no 'file_name'"),
    "box far away": (second(bbox=[1, 2, 2e5, 4]), r"annotation 12 .*bbox .*: it must lie within"),
    "polygon far away": (
        second(segmentation=[[1, 1, 9, 1, 9, -1e9]]),
        r"annotation 12 .*polygon .*: it must lie within 100,000 pixels: give the pixels of its im",
    ),
    "beyond floats": (second(bbox=[1, 2, 10**400, 4]), r"annotation 12 .*give four finite"),
    "area": (second(area=float("nan")), r"annotation 12 .*area nan: give square pixels"),
    "negative area": (second(area=-1), r"annotation 12 .*area -1: give square pixels"),
    "text for area": (second(area="40"), r"annotation 12 .*area '40': give square pixels"),
    "crowd of two": (second(iscrowd=2), r"annotation 12 .*iscrowd 2: give 0 .* or 1"),
    "keypoints 0": (second(keypoints=0), r"annotation 12 .*keypoints that are no list"),
    "RLE runs too long": (
        second(segmentation={"size": [20, 30], "counts": [300, 301]}),
        r"annotation 12 .*counts are not .* 20 x 30 pixels: encode it anew",
    ),
    "RLE runs of nothing": (
        second(segmentation={"size": [20, 30], "counts": [None]}),
        r"annotation 12 .*counts are not .*: encode it anew",
    ),
    "list for an id": (second(id=[12]), r"annotation \[12\] .*has id \[12\]: a number or a text"),
    "list for an image": (second(image_id=[1]), r"annotation 12 .*image_id \[1\]: a number or a"),
    "list for a category": (second(category_id=[1]), r"annotation 12 .*category_id \[1\]: a num"),
    "image ids of two kinds": (image(id="2"), r"image ids are texts, others numbers: give all"),
    "number for a file name": (image(file_name=2), r"image 2 has file_name 2: a text is needed"),
    "number id NaN": (image(id=float("nan")), r"image nan has id nan: a number or a text is nee"),
    "true for an image": (image(id=True), r"image True has id True: a number or a text is needed"),
    "true for an id": (second(id=True), r"annotation True .* has id True: a number or a text"),
    "true for a category": (second(category_id=True), r"annotation 12 .*category_id True: a num"),
    "category id NaN": (
        lambda c: c["categories"][0].update(id=float("nan")),
        r"category 'person' has id nan: a number or a text is needed",
    ),
    "half a character": (second(id="\ud800"), r"has id '\\ud800': a number or a text is needed"),
    "id beyond 64 bits": (image(id=2**63), r"image 9223\S+ has id 9223\d+: a number or a text"),
    "long text": (second(area="a" * 5000), r"annotation 12 .{1,30}area '.{50,80}': give square"),
    "name above": (image(file_name="../../x.png"), r"image 2 has file_name '../../x.png', which"),
    "name between": (image(file_name="a/../x.png"), r"image 2 has file_name 'a/../x.png', which"),
    "whole path": (
        image(file_name="/etc/passwd"),
        r"image 2 has file_name '/etc/passwd', which l",
    ),
    "no name": (image(file_name=""), r"image 2 has file_name '': a text is needed"),
    "long name": (image(file_name="a" * 5000), r"image 2 has .{60,120} of 5,000 characters: give"),
    "escape in a name": (
        image(file_name="\x1b[31m.png"),
        r"image 2 has control characters in file_name '\\x1b\[31m.png': rename it",
    ),
    "part of a pixel": (image(width=30.5), r"image 2 has width and height \[30.5, 20\]: give its"),
    "joint far away": (
        second(keypoints=[4, 10**300, 2] * K),
        r"annotation 12 .*keypoint at 1000.{40,60}0: it must lie within 100,000 pixels",
    ),
    "infinite area": (second(area=1e308), r"annotation 12 .*area 1e\+308: give square pixels"),
    "text for a count": (
        second(num_keypoints="x"),
        r"annotation 12 .*num_keypoints 'x': give the",
    ),
    "NaN for a count": (second(num_keypoints=float("nan")), r"annotation 12 .*num_keypoints nan"),
    "true for a box": (second(bbox=[True] * 4), r"annotation 12 .*bbox \[True.*: give four"),
    "zigzag": (
        second(segmentation=[[0, 0, 30, 20] * 1500]),
        r"annotation 12 .*polygons with [0-9,]+ pixels of outline, more than 5,000: give the ou",
    ),
    "zigzag far away": (
        second(segmentation=[[-1e5, 0, 1e5, 1] * 20]),
        r"annotation 12 .*polygons with 8,000,000 pixels of outline, more than 1,000,000: give",
    ),
    "many corners": (
        second(segmentation=[[1, 1, 2, 1, 2, 2] * 20_000] * 2),
        r"annotation 12 .*polygons of 120,000 points: give at most 100,000, or an RLE",
    ),
    "no compressed RLE": (
        second(segmentation={"size": [20, 30], "counts": "abc"}),
        r"annotation 12 .*counts are not lengths of runs in its 20 x 30 pixels: encode it anew",
    ),
    "RLE of nothing": (
        second(segmentation={"size": [20, 30], "counts": ""}),
        r"annotation 12 .*counts are not lengths of runs in its 20 x 30 pixels: encode it anew",
    ),
    "RLE that ends early": (
        second(segmentation={"size": [20, 30], "counts": [10]}),
        r"annotation 12 .*counts are not lengths of runs in its 20 x 30 pixels: encode it anew",
    ),
    "RLE size of parts": (
        second(segmentation={"size": [20.0, 30], "counts": [600]}),
        r"annotation 12 .*RLE mask of size \[20.0, 30\] \(height, width\): give whole numbers",
    ),
    "no size": (image(width=0), r"image 2 has width and height \[0, 20\]"),
}
