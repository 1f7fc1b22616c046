"""A window on the screen, by OpenCV."""

from __future__ import annotations

import contextlib
import os
import sys

import cv2
import numpy as np

from mpn_d2.utils.video import quiet_opencv


class Window:
    """A window that shows pictures; Q, Escape or closing it ends the show.

    In OpenCV's GTK builds only the keys do: closed windows come back.
    """

    def __init__(self, title: str) -> None:
        """
        Raises:
            ValueError: no display, or an OpenCV without windows.
        """
        self._title = title
        self._was_visible = False
        # A build with Qt or GTK ends the whole process where it finds no display.
        displays = (os.environ.get("DISPLAY"), os.environ.get("WAYLAND_DISPLAY"))
        if sys.platform == "linux" and not any(displays):
            raise ValueError("there is no display (DISPLAY is not set)")
        try:
            with quiet_opencv():
                cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise ValueError(
                "this OpenCV has no windows (opencv-python-headless; opencv-python has)"
            ) from error

    def show(self, image_rgb: np.ndarray) -> bool:
        """Shows a picture; False once the user wants no more."""
        cv2.imshow(self._title, image_rgb[:, :, ::-1])
        key = cv2.waitKey(1) & 0xFF
        closed = self._is_closed()
        return key not in (ord("q"), 27) and not closed

    def _is_closed(self) -> bool:
        try:
            visible = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # Qt, once its last window is gone
            return True
        self._was_visible |= visible
        # GTK knows no such property and says -1 of windows that are there.
        return self._was_visible and not visible

    def close(self) -> None:
        """Removes the window, unless the user has done so."""
        with contextlib.suppress(cv2.error):
            cv2.destroyWindow(self._title)
