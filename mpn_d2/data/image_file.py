"""Reading of image files, whatever kind of picture is in them."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps

from mpn_d2.data.limits import check_image_size, most_pixels
from mpn_d2.data.shown import plain, shown_path

_LARGEST_8_BIT = 2**8 - 1
_LARGEST_16_BIT = 2**16 - 1
# Characters of a library's words about a broken file that a message repeats.
_REASON = 300


def read_pose_image(
    file_name: str | os.PathLike,
    image_format: str,
    *,
    size: tuple[int, int] | None = None,
    image_id: int | str | None = None,
) -> np.ndarray:
    """Reads an image as 8-bit colour.

    Grey, black-and-white, palette, CMYK and transparent pictures become colour (transparency is
    dropped); 16-bit grey is scaled to 8 bits. 32-bit grey is taken as 8-bit where no value is more
    than 255, else as 16-bit.

    A camera's note of how it was held (EXIF) is followed, as in Detectron2. Annotations may have
    been made without it, though: where only the unturned picture has the annotated size, that is
    returned. If both have (square pictures, half turns), the note is followed.

    Args:
        file_name: of the image.
        image_format: INPUT.FORMAT: RGB, BGR or another that Detectron2 knows.
        size: annotated (H, W), None for any.
        image_id: for messages.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file (a folder, a pipe, a device), cannot be read, is larger than the
            limits (`mpn_d2.data.limits`: 179 megapixels) or has another size than annotated; one
            line with file and id.
    """
    path = os.fspath(file_name)
    where = f"image {shown_path(path)}"
    if image_id is not None:
        where += f" (image_id {plain(image_id)})"
    # A pipe would be waited for, a device has no end. Addresses of Detectron2 do not exist here.
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{where} cannot be read: it is a directory, pipe or device, no file")
    with contextlib.ExitStack() as stack:
        with _faults_named(where):
            file = stack.enter_context(PathManager.open(path, "rb"))
            image = _header(file)
        # Before the pixels are unpacked.
        check_image_size(*image.size, where)
        with _faults_named(where):
            image.load()
    return convert_PIL_to_numpy(_eight_bits(_turned(image, size, where), where), image_format)


@contextlib.contextmanager
def _faults_named(where: str) -> Iterator[None]:
    """What goes wrong while a file is read, as one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} not found") from error
    except Image.DecompressionBombError as error:
        limit = round(most_pixels() / 1e6)
        raise ValueError(f"{where} is larger than {limit} megapixels: reduce it") from error
    except Exception as error:  # Pillow raises very different ones for broken files
        # Not str() of the system's errors: that repeats the name.
        said = (isinstance(error, OSError) and error.strerror) or str(error)
        reason = " ".join(said.split())[:_REASON] or type(error).__name__
        raise ValueError(f"{where} cannot be read: {reason}") from error


def _header(file: IO[bytes]) -> Image.Image:
    """The picture in a file, not unpacked yet."""
    with warnings.catch_warnings():
        # Pillow's, of a size that is half the limit.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file)


def _turned(image: Image.Image, size: tuple[int, int] | None, where: str) -> Image.Image:
    turned = image
    with contextlib.suppress(Exception):  # a broken note is no note
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            turned = ImageOps.exif_transpose(image)
    if size is None:
        return turned
    for candidate in (turned, image):
        if candidate.size == (size[1], size[0]):
            return candidate
    raise ValueError(
        f"{where} is {turned.width} x {turned.height} pixels, annotated as {size[1]} x {size[0]}: "
        "correct width and height in the annotation file, or the image"
    )


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Grey images of more than 8 bits scaled to 8, others as they are."""
    if image.mode == "F":
        raise ValueError(
            f"{where} holds floating-point numbers: save it with 8 or 16 bits a channel"
        )
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > _LARGEST_16_BIT:
        raise ValueError(f"{where} has more than 16 bits a pixel: save it with 8 or 16")
    # Mode "I" has 32 bits, but is what Pillow makes of PGM files of 16, too.
    if image.mode == "I" and image.format != "PPM" and values.max() <= _LARGEST_8_BIT:
        return Image.fromarray(values.astype("u1"))
    # In place: such pictures may be large. 32 bits hold 255 times 16.
    scaled = values.astype(np.uint32)
    scaled *= _LARGEST_8_BIT
    scaled += _LARGEST_16_BIT // 2
    scaled //= _LARGEST_16_BIT
    return Image.fromarray(scaled.astype("u1"))
