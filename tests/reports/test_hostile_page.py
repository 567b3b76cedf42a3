"""A page stays harmless whatever the captions, names and files of a run hold: all of it is text."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mmlm.record.changes import Change, Changes, record_changes
from mmlm.reports.page import write_report
from mmlm.reports.run_folder import read_run_folder
from tests.reports.conftest import write_items

EVIL = (
    "\"'></style></pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"
    "<a href=javascript:alert(1)>{value}"
)
"""Ends every element that it may stand in, and every attribute, in either kind of quotes."""


class Page(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def poisoned(value: Any) -> Any:
    """``value`` with the text behind every key and at the end of every string, but for what a reader looks for."""
    if isinstance(value, dict):
        return {f"{key}{EVIL if key not in KNOWN.split() else ''}": poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    read = isinstance(value, str) and (value.startswith("data:") or value in ("table", "chart", "compare", "console"))
    return f"{value}{EVIL}" if isinstance(value, str) and not read else value


KNOWN = """
step examples seconds splits images captions description queries id image generated exact nearest_captions attention
words grid maps text similarity match caption command git_commit git_dirty device packages model parameters flops
training evaluation name meaning group question title share higher_is_better chance low high shown headline beside
family log_scale noiseless precision count among rank extremes worst typical best texts of shown words wrong said cider
attributes language base changes key here
"""
"""Keys of the formats of the files. Any other key is a name that somebody gave."""


def test_nothing_that_a_run_holds_becomes_an_element(make_run):
    folder: Path = make_run(steps=10)
    write_items(folder)
    record_changes(folder, Changes("base", [Change("key", "before", None)]))
    (folder / "manifest.jsonl").unlink()
    (folder.parent / "seed=4").mkdir()
    (folder.parent / "seed=4" / "report.html").write_text("")
    names = ("scores.json", "samples.json", "environment.json", "figures.json", "items.json", "changes.json")
    for name in names:
        content = poisoned(json.loads((folder / name).read_text()))
        (folder / name).write_text(json.dumps(content))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(poisoned(row)) + "\n" for row in rows))
    (folder / "config.yaml").write_text(f"a: {EVIL}\n")
    named = folder.parents[1].rename(folder.parents[2] / EVIL.replace("/", "")) / folder.parent.name / folder.name
    other = read_run_folder(named)
    text = write_report(named, replace(other, path=named.with_name("seed=4"))).read_text(encoding="utf-8")
    assert "alert(1)" in text, "it is shown"
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.elements) == 1, "ours"
    allowed = {"src": "data:image/", "href": ("data:,", "#", "../seed=4/report.html")}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name, start in allowed.items():
            assert name not in attributes or str(attributes[name]).startswith(start), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        assert "javascript:" not in (attributes.get("style") or "")
