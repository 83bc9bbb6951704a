"""The page of a report, read as a browser would."""

from html.parser import HTMLParser
from typing import Any

from results_example import read

from report.html_report import render_report

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x03\xe8\x00\x00\x01\xf4"
FIGURES = ("energy_accuracy", "pareto", "precisions", "sensitivity", "learning_curve")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The visible text, the images and the addresses of a page; refuses tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page_of(results: dict[str, Any]) -> Page:
    return Page(render_report(read(results), dict.fromkeys(FIGURES, PNG)))
