"""Windows, without a screen: OpenCV's calls are made up."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from mpn_d2.utils.window import Window


def test_no_window_without_display_or_without_support(monkeypatch, capfd):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no display"):
        Window("a")
    monkeypatch.setenv("DISPLAY", ":0")

    def refuse(*_: object) -> None:
        raise cv2.error("The function is not implemented. Rebuild the library")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(ValueError, match="no windows"):
        Window("a")
    assert capfd.readouterr().err == ""


@pytest.fixture()
def screen(monkeypatch) -> dict[str, Iterator | list]:
    """`keys` and values of WND_PROP_VISIBLE (or errors) that come next; pictures `shown`."""
    state = {"keys": iter([]), "visible": iter([]), "shown": []}

    def visible(*_: object) -> float:
        value = next(state["visible"])
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: state["shown"].append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(state["keys"], -1))
    monkeypatch.setattr(cv2, "getWindowProperty", visible)
    return state


RED = np.full((2, 2, 3), (255, 0, 0), np.uint8)


def test_window_shows_until_the_user_has_enough(screen):
    screen["keys"] = iter([-1, ord("q"), 27, -1])
    screen["visible"] = iter([1, 1, 1, 0])
    window = Window("a")
    assert [window.show(RED) for _ in range(4)] == [True, False, False, False]
    assert screen["shown"][0][0, 0].tolist() == [0, 0, 255]


def test_builds_that_do_not_tell_whether_a_window_is_there(screen):
    """GTK: -1 of every window; Q ends the show."""
    screen["visible"] = iter([-1, -1, -1, -1])
    screen["keys"] = iter([-1, -1, -1, ord("q")])
    window = Window("a")
    assert [window.show(RED) for _ in range(4)] == [True, True, True, False]


def test_a_window_that_appears_late(screen):
    screen["visible"] = iter([0, 1, 1, -1])
    window = Window("a")
    assert [window.show(RED) for _ in range(4)] == [True, True, True, False]


def test_builds_that_raise_once_the_window_is_gone(screen, monkeypatch):
    """Qt: closing the window is no error."""
    gone = cv2.error("NULL guiReceiver (please create a window)")
    screen["visible"] = iter([1, gone])
    asked = []

    def destroy(title: str) -> None:
        asked.append(title)
        raise gone

    monkeypatch.setattr(cv2, "destroyWindow", destroy)
    window = Window("a")
    assert [window.show(RED), window.show(RED)] == [True, False]
    window.close()
    assert asked == ["a"]
