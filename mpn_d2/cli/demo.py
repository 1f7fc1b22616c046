"""Draws people on images, a video or a camera's pictures; writes them as COCO JSON too.

mpn-demo (or, in the repository, python tools/demo.py):

mpn-demo --config-file quick/demo.yaml --input photos/ "more/*.jpg" \
    --output drawn --json people.json --opts MODEL.WEIGHTS output/demo/model_final.pth
mpn-demo --config-file C --video-input walk.mp4 --output drawn.mp4 --track --opts ...
mpn-demo --config-file C --webcam --opts MODEL.WEIGHTS ...

The config is a file, or the name of one that comes with the package.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from mpn_d2.engine.cli import run_command
from mpn_d2.engine.image_drawing import (
    DrawingOptions,
    DrawingReport,
    draw_images,
    find_images,
    heatmap_file,
    name_outputs,
)
from mpn_d2.engine.pose_predictor import PosePredictor, check_share
from mpn_d2.engine.video_drawing import DrawnFrames, camera_name, draw_video, name_video
from mpn_d2.utils.files import JsonListWriter, check_file, check_folder, make_folder
from mpn_d2.utils.safe_files import add_trust_argument
from mpn_d2.utils.video import CODECS, Camera, VideoReader
from mpn_d2.utils.visualize import KEYPOINT_THRESHOLD
from mpn_d2.utils.window import Window


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config that the weights fit")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, folders, globs")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam",
        nargs="?",
        type=int,
        const=0,
        metavar="INDEX",
        help="a camera (default: 0), until Q in the window or Ctrl-C",
    )
    parser.add_argument(
        "--output",
        help="folder for the drawn images (PNG) or the video (MP4), or a video file: .mp4, .avi, "
        ".mkv, .mov, .webm; --webcam needs none where there is a window",
    )
    parser.add_argument("--json", metavar="FILE", help="file for people in COCO's result format")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="least box score of people that are drawn and written, 0 to 1 (default: the config's "
        "EVAL.CONFIDENCE_THRESH); below MODEL.ASSEMBLER.BOX_SCORE_THRESH a box has no skeleton",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument(
        "--track", action="store_true", help="in videos, give people numbers and colours that stay"
    )
    parser.add_argument("--no-boxes", action="store_true", help="draw no boxes and scores")
    parser.add_argument("--no-mask", action="store_true", help="draw no masks")
    parser.add_argument(
        "--keypoint-threshold",
        type=float,
        default=KEYPOINT_THRESHOLD,
        metavar="T",
        help="draw joints that score more, 0 to 1 (default: 0.05)",
    )
    parser.add_argument(
        "--heatmaps", action="store_true", help="draw the heatmaps, too: <name>_heatmaps"
    )
    add_trust_argument(parser)
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs over the config, last on the line; MODEL.WEIGHTS names the weights",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Draws all there is; exit code 1 where some of the input could not be read."""
    _check_arguments(args)
    report = DrawingReport()
    if args.input:
        kind, where = "images", _images(args, report)
    elif args.video_input is not None:
        kind, where = "frames", _video(args, report)
    else:
        kind, where = "frames", _camera(args, report)
    print(f"{report.pictures} {kind} with {report.people} people {where}")
    if report.failures:
        print(f"{len(report.failures)} inputs failed (named above)", file=sys.stderr)
        sys.exit(1)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.confidence_threshold is not None:
        check_share("--confidence-threshold", args.confidence_threshold)
    check_share("--keypoint-threshold", args.keypoint_threshold)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}: at least 1 is needed")
    if args.batch_size > 1 and args.webcam is not None:
        raise ValueError("--batch-size is for images and videos: a camera's frames go one by one")
    if args.json:
        check_file("--json", args.json)
    videos = [path for path in args.input or () if Path(path).suffix.lower() in CODECS]
    if videos:
        raise ValueError(f"--input {videos[0]} is a video: give it as --video-input")
    if args.input and args.track:
        raise ValueError("--track follows people in a video: give --video-input or --webcam")
    if not args.output and args.webcam is None:
        raise ValueError("--output is missing: a folder, or for a video a file")
    if args.heatmaps and not args.output:
        raise ValueError("--heatmaps are written, not shown in the window: give --output")


def _images(args: argparse.Namespace, report: DrawingReport) -> str:
    files, missing = find_images(args.input)
    if not files:
        raise ValueError(f"no image found: {'; '.join(missing)}")
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        raise ValueError(f"--output {args.output} is a file: images need a folder")
    check_folder(args.output)
    targets = name_outputs(files, args.output, args.heatmaps)
    _keep(files, targets.values(), args)
    predictor = _predictor(args)
    with ExitStack() as stack:
        rows = stack.enter_context(JsonListWriter(args.json)) if args.json else None
        make_folder(args.output)
        for line in missing:
            report.fail(line)
        options = _drawing_options(args, predictor)
        draw_images(files, targets, predictor, options, report, rows, args.batch_size)
    return _where(args.output, args.json)


def _video(args: argparse.Namespace, report: DrawingReport) -> str:
    with VideoReader(args.video_input) as source:
        path = name_video(args.output, args.video_input, args.heatmaps)
        _keep([args.video_input], [path], args)
        predictor = _predictor(args)
        with ExitStack() as stack:
            rows = stack.enter_context(JsonListWriter(args.json)) if args.json else None
            drawn = DrawnFrames(_drawing_options(args, predictor), path, source.fps, rows=rows)
            draw_video(
                source,
                predictor,
                stack.enter_context(drawn),
                report,
                batch_size=args.batch_size,
                track=args.track,
            )
    if drawn.cut:
        print(f"{path}: a video of this kind has even sides, the last column or row is cut off")
    return _where(path, args.json)


def _camera(args: argparse.Namespace, report: DrawingReport) -> str:
    with ExitStack() as stack:
        window = _window(args, stack)
        path = name_video(args.output, camera_name(), args.heatmaps) if args.output else None
        _keep([], [path] if path else [], args)
        source = stack.enter_context(Camera(args.webcam))
        predictor = _predictor(args)
        rows = stack.enter_context(JsonListWriter(args.json)) if args.json else None
        drawn = DrawnFrames(
            _drawing_options(args, predictor), path, source.fps, rows=rows, live=True
        )
        if window is None:
            print(f"recording {source.path}: Ctrl-C ends it", flush=True)
        draw_video(
            source,
            predictor,
            stack.enter_context(drawn),
            report,
            track=args.track,
            show=window.show if window else None,
        )
    return _where(path, args.json)


def _window(args: argparse.Namespace, stack: ExitStack) -> Window | None:
    """A window, or None where there can be none and the pictures are recorded."""
    try:
        window = Window("mpn_d2")
    except ValueError as error:
        if args.output:
            return None
        raise ValueError(
            f"--webcam needs a window: {error}; give --output to record instead"
        ) from error
    stack.callback(window.close)
    return window


def _predictor(args: argparse.Namespace) -> PosePredictor:
    return PosePredictor(
        args.config_file,
        options=args.opts,
        confidence_threshold=args.confidence_threshold,
        heatmaps=args.heatmaps,
    )


def _drawing_options(args: argparse.Namespace, predictor: PosePredictor) -> DrawingOptions:
    return DrawingOptions(
        boxes=not args.no_boxes,
        mask=not args.no_mask,
        mask_threshold=predictor.cfg.EVAL.MASK_THRESH,
        keypoint_threshold=args.keypoint_threshold,
        heatmaps=args.heatmaps,
    )


def _keep(inputs: Iterable[str], drawn: Collection[str], args: argparse.Namespace) -> None:
    """Raises a ValueError where the JSON would be an input or a picture, or a folder of these."""
    if not args.json:
        return
    files = [*inputs, *drawn]
    if args.heatmaps:
        files += map(heatmap_file, drawn)
    path = Path(os.path.realpath(args.json))
    for file in map(Path, map(os.path.realpath, files)):
        if path == file or path in file.parents or file in path.parents:
            raise ValueError(f"--json {args.json} is a file of another use: name another")


def _where(output: str | None, json: str | None) -> str:
    drawn = f"drawn in {output}" if output else "shown"
    return drawn + (f", people in {json}" if json else "")


def run() -> None:
    """The command."""
    args = parse_args()
    run_command(lambda: main(args))
