"""Writes ``report.html`` of a run folder: a single page that needs no other file, for a talk, a mail or a printer."""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mmlm.record.folder import FIGURES, REPORT
from mmlm.record.manifest import write_recorded
from mmlm.reports.breakdown_section import breakdown_section
from mmlm.reports.curves_section import curves
from mmlm.reports.document import document
from mmlm.reports.run_folder import RunFolder, read_run_folder
from mmlm.reports.run_section import against_note, changes_section, name_beside, reproduce_section, seeds_line
from mmlm.reports.samples_section import samples_section
from mmlm.reports.scores_section import Other, headline, newest_scores, scores_table, split_colors
from mmlm.reports.script import SCRIPT


def write_report(run_folder: Path, other: RunFolder | None = None) -> Path:
    """Writes ``report.html`` into a run folder, finished or not, and returns its path.

    The scores of ``other``, another run, stand beside those of this one.

    Raises ``UserError`` when the folder is no run folder or one of its files cannot be understood. An older page is
    replaced in one step, so that a reader never meets half of one.
    """
    page = render_page(read_run_folder(run_folder), other)
    target = run_folder / REPORT
    write_recorded(target, page)
    return target


def render_page(run: RunFolder, other: RunFolder | None = None) -> str:
    """The whole page as HTML."""
    title = run.experiment if run.seed is None else f"{run.experiment}, seed {run.seed}"
    sections = {
        "Scores": _scores(run, other),
        "Breakdown": _breakdown(run),
        "Curves": _curves(run),
        "Samples": _samples(run),
        "Changes": changes_section(run.changes),
        "Do it again": reproduce_section(run),
    }
    body = _header(run, _contents(sections)) + "".join(sections.values())
    return document(title, body, f"{run.display_path}, written by mmlm", script=SCRIPT)


def format_duration(seconds: float) -> str:
    """42 s, 7 min 12 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_count(count: int) -> str:
    """A count of parameters: 950, 167.6 k, 2.13 M, 7.24 B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{1 if size == 10**3 else 2}f} {letter}"
    return str(count)


def format_flops(count: int) -> str:
    """FLOPs: 950 FLOPs, 39.6 MFLOPs, 17.6 GFLOPs."""
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}FLOPs"
    return f"{count} FLOPs"


def _contents(sections: Mapping[str, str]) -> str:
    """A link to each section that there is, by the id that the section begins with."""
    links = "".join(
        f'<a href="#{found[1]}">{name}</a>'
        for name, section in sections.items()
        if (found := re.match(r'<section id="([a-z]+)"', section))
    )
    return f'<nav aria-label="Contents">{links}</nav>'


def _header(run: RunFolder, contents: str) -> str:
    scores = newest_scores(run)
    name = "" if run.name is None else f"run <code>{escape(run.name)}</code>, seed {run.seed}"
    said = headline(scores, run.figures.evaluation) if scores else ""
    lead = f'<p class="lead">{said}</p>' if said else ""
    facts = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in _facts(run).items())
    return (
        f'<header><p class="eyebrow">{name}</p><h1>{escape(run.experiment)}</h1>'
        f'{lead}{seeds_line(run.path)}<dl class="facts">{facts}</dl>{_parts(run)}{contents}</header>'
    )


def _facts(run: RunFolder) -> dict[str, str]:
    """The facts in the page's header, by their label; values are HTML."""
    facts = {
        "Steps": f"{run.metrics.steps:,}",
        "Examples": f"{run.metrics.examples:,}",
        "Duration": format_duration(run.metrics.seconds),
    }
    if run.parameters:
        facts["Parameters"] = format_count(sum(run.parameters.values()))
    if run.flops:
        meaning = "forward, one image and one caption of the longest length; a multiply-add is 2"
        facts["One example"] = f'<span title="{meaning}">{format_flops(sum(run.flops.values()))}</span>'
    if "device" in run.environment:
        precision = run.environment.get("precision")
        facts["Device"] = escape(f"{run.environment['device']}{f', {precision}' if precision else ''}")
    commit = run.environment.get("git_commit")
    if commit:
        dirty = ' <span class="warning">uncommitted changes</span>' if run.environment.get("git_dirty") else ""
        facts["Git commit"] = f'<code title="{escape(str(commit))}">{escape(str(commit)[:10])}</code>{dirty}'
    return facts


def _parts(run: RunFolder) -> str:
    """The parameters of each part as one bar, and a legend with parameters and FLOPs."""
    parts = run.parameters
    if not parts:
        return ""
    shades = [1 - 0.68 * i / max(len(parts) - 1, 1) for i in range(len(parts))]
    bar = "".join(
        f'<i style="flex:{count};opacity:{shade:.2f}"></i>' for count, shade in zip(parts.values(), shades, strict=True)
    )
    names = "".join(
        f'<span><i style="opacity:{shade:.2f}"></i>{escape(part)} <b>{format_count(count)}</b>'
        f"{f', {format_flops(run.flops[part])}' if part in run.flops else ''}</span>"
        for (part, count), shade in zip(parts.items(), shades, strict=True)
    )
    return f'<div class="parts" aria-hidden="true">{bar}</div><div class="part-names">{names}</div>'


def _scores(run: RunFolder, other: RunFolder | None) -> str:
    scores = newest_scores(run)
    beside = Other(name_beside(run, other), other.scores) if other and other.scores else None
    table = (
        scores_table(scores, split_colors(run), run.figures.evaluation, beside)
        if scores and scores.splits
        else '<p class="note">Not evaluated yet.</p>'
    )
    said = against_note(run, other) if other and beside else ""
    about = '<p class="note">Below a score stand what chance gives and the 95% interval, where they are known.</p>'
    note = f'<p class="note">{FIGURES} is damaged: what it explains is shown under plain names.</p>'
    return f'<section id="scores"><h2>Scores</h2>{note * run.figures.damaged}{about}{said}{table}</section>'


def _breakdown(run: RunFolder) -> str:
    drawn = breakdown_section(run.items, split_colors(run))
    return f'<section id="breakdown"><h2>Where it is right and wrong</h2>{drawn}</section>' if drawn else ""


def _curves(run: RunFolder) -> str:
    drawn = curves(run.metrics, split_colors(run), run.figures) or '<p class="note">Nothing logged yet.</p>'
    return (
        '<section id="curves"><h2>Curves</h2><p class="note">Over optimizer steps. Faint: as logged; '
        "strong: running mean. The number is where the strong line ends; point at a chart to read its values."
        f"</p>{drawn}</section>"
    )


def _samples(run: RunFolder) -> str:
    shown = {name: split for name, split in run.samples.items() if split.examples or split.queries}
    drawn = samples_section(shown) if shown else '<p class="note">No samples yet.</p>'
    silent = shown and all(example.generated is None for split in shown.values() for example in split.examples)
    title = "What it finds" if silent else "What it sees and says"
    return f'<section id="samples"><h2>{title}</h2>{drawn}</section>'
