"""The page: well formed, escaped, with links that open from a folder."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import unquote

from mpn_d2.utils.results_page import PagePicture, results_page

NASTY = "<b>&\"' #1?"
_VOID = {"meta", "img"}


class Page(HTMLParser):
    """Open tags, texts and pictures; fails where tags do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_text_is_escaped_and_every_picture_linked() -> None:
    pictures = [
        PagePicture(NASTY, NASTY, "a b#1?%20.png", rows=[["person", NASTY], ["1", NASTY]]),
        PagePicture("lost", "figures", None, problem=NASTY),
    ]
    page = Page()
    page.feed(results_page(NASTY, [NASTY], {NASTY: [[NASTY], [NASTY]]}, pictures))
    page.close()
    assert page.open == [] and "b" not in page.tags
    assert page.texts.count(NASTY) == 11
    (image,) = page.images
    assert unquote(image["src"]) == "a b#1?%20.png" and not set(image["src"]) & set(" #?")
    assert image["alt"] == NASTY
    assert page.tags.count("section") == 2 and page.tags.count("table") == 2


def test_nothing_to_show() -> None:
    page = Page()
    page.feed(results_page("title", [], {}, []))
    assert page.open == [] and page.images == [] and "table" not in page.tags
