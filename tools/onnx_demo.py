#!/usr/bin/env python
"""Draws people with an exported file: python tools/onnx_demo.py R_50_fp32.onnx in.jpg out.png"""

import argparse
import json
import sys

import cv2
import numpy as np
import onnxruntime


def load(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map.get("mpn_d2")
    if about is None:
        raise ValueError(f"{path} is not a file of tools/export_model.py")
    return session, json.loads(about)


def find(session, about, image_bgr):
    order = 1 if about["color_order"] == "BGR" else -1
    image = np.ascontiguousarray(image_bgr[:, :, ::order])
    return dict(zip(about["outputs"], session.run(about["outputs"], {"image": image})))


def draw(image_bgr, found, about, threshold):
    person = found.get("person_mask", np.zeros(image_bgr.shape[:2]))[..., None] > 0.5
    drawn = np.where(person, image_bgr // 2 + np.array([128, 64, 0], np.uint8), image_bgr)
    colors = [(66, 135, 245), (80, 200, 90), (230, 90, 60), (60, 200, 220), (200, 80, 200)]
    kept = np.flatnonzero(found["scores"] >= threshold)
    for i in kept:
        box = found["boxes"][i].round().astype(int).tolist()
        cv2.rectangle(drawn, box[:2], box[2:], colors[i % 5], 1)
        seen = found["keypoints"][i, :, 2] > 0.05
        places = found["keypoints"][i, :, :2].astype(int).tolist()
        for a, b in [map(about["keypoint_names"].index, edge) for edge in about["edges"]]:
            if seen[a] and seen[b]:
                cv2.line(drawn, places[a], places[b], colors[i % 5], 2, cv2.LINE_AA)
        for j in np.flatnonzero(seen):
            cv2.circle(drawn, places[j], 3, colors[i % 5], -1, cv2.LINE_AA)
    return drawn, len(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "image", "output"):
        parser.add_argument(name)
    parser.add_argument("--threshold", type=float, default=0.5, help="least box score (0.5)")
    args = parser.parse_args()
    try:
        if (image := cv2.imread(args.image)) is None:
            raise ValueError(f"{args.image} cannot be read as an image")
        session, about = load(args.model)
        drawn, count = draw(image, find(session, about, image), about, args.threshold)
        if not cv2.imwrite(args.output, drawn):
            raise ValueError(f"{args.output} cannot be written")
    except Exception as error:  # onnxruntime and OpenCV have classes of their own
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(f"{args.output}: {count} people")
