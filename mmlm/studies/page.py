"""The page of a study as HTML: one file that needs no other and no network."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from mmlm.reports.document import document
from mmlm.reports.run_folder import RunFolder
from mmlm.reports.scores_section import SERIES_COLORS
from mmlm.studies.contrast_table import number, row
from mmlm.studies.contrasts import Compared
from mmlm.studies.drawings import forest
from mmlm.studies.page_pictures import captions, compute, curves, heat
from mmlm.studies.record import ScoreArrays, StudyRecord

_STYLE = """
.study td, .study th { padding: 6px 0 6px 20px; text-align: right; white-space: nowrap; font-weight: 400;
  vertical-align: baseline; }
.study th:first-child, .study td:first-child { padding-left: 0; text-align: left; white-space: normal; }
.study thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; font-size: 13.5px; }
.study tbody tr { border-top: 1px solid var(--line); }
.study small { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400; }
.study .best { font-weight: 680; }
table.study, table.heat { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14.5px; }
table.study { width: 100%; }
.heat th { padding: 6px 14px 6px 0; text-align: left; font-weight: 560; font-size: 14px; }
.heat td { padding: 12px 18px; text-align: center; border: 2px solid var(--page); }
svg.plain { display: block; width: 100%; max-width: 860px; height: auto; margin: 14px 0 8px; overflow: visible; }
svg.plain text { font: 13px var(--sans); font-variant-numeric: tabular-nums; }
section > h3 { margin-top: 30px; }
.captioned { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 26px 34px;
  margin-top: 18px; }
.captioned figure { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 14px; align-items: start; }
.captioned img { width: 96px; height: 96px; object-fit: contain; border: 1px solid var(--line); }
.captioned li { margin-bottom: 3px; font-size: 14px; line-height: 1.35; overflow-wrap: anywhere; }
.captioned li span { display: block; color: var(--muted); font-size: 12.5px; }
.captioned .exact { color: var(--good); }
"""


def study_page(
    record: StudyRecord,
    arrays: Sequence[ScoreArrays],
    compared: Sequence[Compared],
    folders: Mapping[str, RunFolder],
) -> str:
    """The whole page. ``compared`` are the contrasts of ``arrays``; ``folders`` has the run folders, for curves and
    captions, by the runs' labels."""
    cells = [cell for cell in record.cells if any(run.cell == cell for run in record.runs)]
    colors = {cell: f"series-{place % SERIES_COLORS + 1}" for place, cell in enumerate(cells)}
    by_cell = {
        cell: [folders[run.label] for run in record.runs if run.cell == cell and run.label in folders] for cell in cells
    }
    sections = {
        "Scores": _scores(record, arrays, compared),
        "Differences": "".join(_differences(one, record.baseline) for one in compared),
        "Curves": curves(arrays, by_cell, colors),
        "Against compute": "".join(compute(record, one, colors) for one in arrays),
        "Two axes": "".join(heat(record, one) for one in arrays),
        "The same images": captions(by_cell),
    }
    shown = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in shown)
    head = (
        f'<header><p class="eyebrow">a study of {len(cells)} cells, {len(record.runs)} runs</p>'
        f'<h1>{escape(record.name)}</h1><p class="lead">{escape(record.question)}</p>'
        + "".join(f'<p class="unlike">Not comparable: {escape(one)}.</p>' for one in record.unlike)
        + f"<nav>{links}</nav></header>"
    )
    body = "".join(f'<section id="{_anchor(title)}"><h2>{title}</h2>{part}</section>' for title, part in shown.items())
    return document(record.name, head + body, record.command, style=_STYLE)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _scores(record: StudyRecord, arrays: Sequence[ScoreArrays], compared: Sequence[Compared]) -> str:
    """A row for each cell: means, deviations, differences, and what training took."""
    heads = "".join(
        f"<th>{escape(one.split)}<br>{escape(one.name)}"
        + ("<small>less is better</small>" if one.figure.higher_is_better is False else "")
        + "</th>"
        for one in arrays
    )
    best = [best_cells(one) for one in arrays]
    rows = []
    for place, cell in enumerate(record.cells):
        runs = [run for run in record.runs if run.cell == cell]
        if not runs:
            continue
        values = "".join(
            _value(one, of, place, cell in good) for one, of, good in zip(arrays, compared, best, strict=True)
        )
        baseline = "<small>baseline</small>" if cell == record.baseline else ""
        flops, minutes = np.mean([run.flops for run in runs]), np.mean([run.seconds for run in runs]) / 60
        memory = max(run.memory for run in runs)
        rows.append(
            f"<tr><th>{escape(cell)}{baseline}</th><td>{len(runs)}</td>{values}<td>{runs[0].parameters:,}</td>"
            f"<td>{flops / 1e12:.3g}</td><td>{memory / 1e9:.2f}</td><td>{minutes:.1f}</td></tr>"
        )
    return (
        '<p class="note">Mean ± standard deviation over seeds; bold: no worse than the best by more than noise. Below: '
        "the difference to the baseline, its 95% interval over seeds and items, and p among all cells.</p>"
        f'<div class="scroll"><table class="study"><thead><tr><th>cell</th><th>seeds</th>{heads}<th>parameters</th>'
        f"<th>TFLOPs</th><th>memory, GB</th><th>minutes</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _value(one: ScoreArrays, compared: Compared, place: int, is_best: bool) -> str:
    values = one.values[place][np.isfinite(one.values[place])]
    if not len(values):
        return "<td>-</td>"
    cell = one.cells[place]
    mean = number(float(values.mean()), one.figure)
    deviation = f" ± {number(float(values.std(ddof=1)), one.figure)}" if len(values) > 1 else ""
    contrast = next((c for c in compared.contrasts if c.second == cell), None)
    told = ""
    if contrast is not None:
        _, difference, here, beyond, p, *_ = row(contrast, compared)
        ends = beyond if compared.by_item else here
        told = f"<small>{difference} {ends}</small><small>p {p}</small>"
    best = ' class="best"' if is_best else ""
    return f"<td{best}>{mean}{deviation}{told}</td>"


def best_cells(one: ScoreArrays) -> set[str]:
    """The best cell by mean, and those whose paired differences to it are within twice their standard error."""
    there = np.isfinite(one.values).any(axis=1)
    seeds = np.isfinite(one.values[there]).all(axis=0)
    rows = zip(one.cells, one.values, there, strict=True)
    means = {cell: values[seeds] for cell, values, is_there in rows if is_there}
    if not means or not seeds.any():
        return set()
    sign = -1 if one.figure.higher_is_better is False else 1
    best = max(means, key=lambda cell: sign * means[cell].mean())
    found = {best}
    for cell, values in means.items():
        apart = sign * (means[best] - values)
        if len(apart) > 1 and apart.mean() <= 2 * apart.std(ddof=1) / np.sqrt(len(apart)):
            found.add(cell)
    return found


def _differences(one: Compared, baseline: str) -> str:
    title = f"<h3>{escape(one.split)}: {escape(one.name)}</h3>"
    if one.lacking is not None:
        return f'{title}<p class="note">No contrast: {escape(one.lacking)}.</p>'
    ends = "Thick: for other seeds on these items. Thin: for other items too." if one.by_item else "For other seeds."
    told = f"Less {baseline}, over {len(one.seeds)} seeds. {ends}"
    reason = one.contrasts[0].no_test
    tested = "" if reason is None else f'<p class="note">{escape(reason)}</p>'
    return f'{title}<p class="note">{escape(told)}</p>{forest(one.contrasts, one.figure)}{tested}'
