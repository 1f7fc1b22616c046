#!/usr/bin/env python
"""Draws people with an exported file: python tools/onnx_demo.py R_50_fp32.onnx in.jpg out.png"""

import argparse
import json
import sys

import cv2
import numpy as np
import onnxruntime

COLORS = [(66, 135, 245), (80, 200, 90), (230, 90, 60), (60, 200, 220), (200, 80, 200)]


def load(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["mpn_d2"])


def find(session, about, image_bgr):
    image = image_bgr if about["color_order"] == "BGR" else image_bgr[:, :, ::-1]
    found = session.run(about["outputs"], {"image": np.ascontiguousarray(image)})
    return dict(zip(about["outputs"], found))


def draw(image_bgr, found, about, threshold):
    drawn = image_bgr.copy()
    person = found["person_mask"] > 0.5
    drawn[person] = drawn[person] // 2 + np.array([128, 64, 0], np.uint8)
    joint = {name: i for i, name in enumerate(about["keypoint_names"])}
    kept = np.flatnonzero(found["scores"] >= threshold)
    for number, i in enumerate(kept):
        color = COLORS[number % len(COLORS)]
        x1, y1, x2, y2 = found["boxes"][i].round().astype(int).tolist()
        cv2.rectangle(drawn, (x1, y1), (x2, y2), color, 1)
        pose = found["keypoints"][i]
        places = [tuple(point) for point in pose[:, :2].astype(int).tolist()]
        for a, b in about["edges"]:
            if min(pose[joint[a], 2], pose[joint[b], 2]) > 0.05:
                cv2.line(drawn, places[joint[a]], places[joint[b]], color, 2, cv2.LINE_AA)
        for place, score in zip(places, pose[:, 2]):
            if score > 0.05:
                cv2.circle(drawn, place, 3, color, -1, cv2.LINE_AA)
    return drawn, len(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "image", "output"):
        parser.add_argument(name)
    parser.add_argument("--threshold", type=float, default=0.5, help="least box score (0.5)")
    args = parser.parse_args()
    image = cv2.imread(args.image)
    if image is None:
        sys.exit(f"error: {args.image} cannot be read as an image")
    session, about = load(args.model)
    drawn, count = draw(image, find(session, about, image), about, args.threshold)
    if not cv2.imwrite(args.output, drawn):
        sys.exit(f"error: {args.output} cannot be written")
    print(f"{args.output}: {count} people")
