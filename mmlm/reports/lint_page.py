"""The page about a data set: what was counted, what is wrong, what is there twice, and some of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmlm.reports.document import document

_OWN_STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 24px 18px;
  margin: 24px 0; }
.pairs figure { margin: 0; }
.pairs .both { display: flex; gap: 6px; }
.pairs img { width: 50%; aspect-ratio: 1; object-fit: contain; border: 1px solid var(--line); min-width: 0; }
.pairs p, .names li, .gallery p { overflow-wrap: anywhere; }
.names { font-size: 14px; padding-left: 1.2em; }
"""


@dataclass(frozen=True)
class ShownExample:
    """An example with its picture."""

    id: str
    thumbnail: str
    """As ``thumbnail_uri`` makes it; empty for an example that has no image, or none that can be read any more."""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something that several examples have in common."""

    what: str
    count: int
    examples: tuple[str, ...]
    """The first of them, in words."""


@dataclass(frozen=True)
class Section:
    """What was found in one set, or between two."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    pairs: tuple[tuple[ShownExample, ShownExample, str], ...] = ()
    """Two images and what they have in common."""
    shown: tuple[ShownExample, ...] = ()


def lint_page(title: str, sections: Sequence[Section]) -> str:
    """The whole page as HTML: one file that needs no other and no network."""
    body = "".join(_section(section) for section in sections)
    head = f'<header><p class="eyebrow">what is in the data</p><h1>{escape(title)}</h1></header>'
    return document(title, head + body, "written by mmlm", style=_OWN_STYLE)


def _section(section: Section) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in section.facts)
    findings = "".join(_finding(finding) for finding in section.findings)
    pairs = "".join(_pair(*pair) for pair in section.pairs)
    shown = "".join(_example(example) for example in section.shown)
    return (
        f"<section><h2>{escape(section.title)}</h2>"
        + (f'<dl class="facts">{facts}</dl>' if facts else "")
        + (f'<table class="plain">{findings}</table>' if findings else "")
        + (f'<div class="pairs">{pairs}</div>' if pairs else "")
        + (f'<div class="gallery">{shown}</div>' if shown else "")
        + "</section>"
    )


def _finding(finding: Finding) -> str:
    names = "".join(f'<li dir="auto">{escape(name)}</li>' for name in finding.examples)
    more = finding.count - len(finding.examples)
    rest = f"<li>and {more:,} more</li>" if more > 0 else ""
    return f'<tr><th>{finding.count:,} {escape(finding.what)}</th><td><ul class="names">{names}{rest}</ul></td></tr>'


def _pair(one: ShownExample, other: ShownExample, common: str) -> str:
    images = "".join(f'<img src="{shown.thumbnail}" alt="">' for shown in (one, other) if shown.thumbnail)
    names = f'<p dir="auto">{escape(one.id)}<br>{escape(other.id)}</p>'
    return f'<figure><div class="both">{images}</div><figcaption>{escape(common)}{names}</figcaption></figure>'


def _example(example: ShownExample) -> str:
    image = f'<img src="{example.thumbnail}" alt="">' if example.thumbnail else ""
    captions = "".join(f'<p class="generated" dir="auto">{escape(caption)}</p>' for caption in example.captions[:3])
    name = f'<p class="truth" dir="auto">{escape(example.id)}</p>'
    return f"<figure>{image}<figcaption>{captions}{name}</figcaption></figure>"
