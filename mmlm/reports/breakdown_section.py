"""The report's section that breaks scores down, and says what is taken for what, split by split."""

from collections.abc import Mapping, Sequence
from html import escape

from mmlm.reports.breakdown import (
    CUTOFF,
    Mistake,
    Share,
    Table,
    image_tables,
    nearest_mistakes,
    said_mistakes,
    text_tables,
)
from mmlm.reports.items import ConfusionMatrix, SplitItems
from mmlm.reports.tabs import tabbed


def breakdown_section(items: Mapping[str, SplitItems], colors: Mapping[str, str]) -> str:
    """A tab for each split that has something to tell; empty if none has."""
    panels = {name: _panel(split, colors.get(name, "series-1")) for name, split in items.items()}
    panels = {name: panel for name, panel in panels.items() if panel}
    return tabbed("breakdown", panels) if panels else ""


def _panel(items: SplitItems, color: str) -> str:
    blocks = [
        _tables(f"By image: a true caption is among the {CUTOFF} nearest", image_tables(items), "images", color),
        _tables(f"By caption: an image of it is among the {CUTOFF} nearest", text_tables(items), "captions", color),
        _mistakes("Taken for", "the nearest caption is of", nearest_mistakes(items)),
        _mistakes("Said instead", "the caption says", said_mistakes(items)),
        _confusion(items.confusion, color),
    ]
    some = "".join(blocks)
    left_out = [
        f"{len(shown):,} of {total:,} {what}"
        for shown, total, what in (
            (items.images, items.num_images, "images"), (items.texts, items.num_texts, "captions")
        )
        if len(shown) < total
    ]  # fmt: skip
    said = f'<p class="note">From {" and ".join(left_out)}, evenly spaced.</p>' if left_out and some else ""
    return said + some


def _tables(title: str, tables: Sequence[Table], what: str, color: str) -> str:
    """A block with a table for each attribute; captions that are exactly right have a column if any was scored."""
    if not tables:
        return ""
    captioned = any(row.exact for table in tables for row in table.rows)
    drawn = "".join(_table(table, what, captioned, color) for table in tables)
    return f'<div><h3>{escape(title)}</h3><div class="breakdowns">{drawn}</div></div>'


def _table(table: Table, what: str, captioned: bool, color: str) -> str:
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{escape(row.value)}</th><td>{row.count:,}</td>'
        f"<td>{_share(row.found, color)}</td>" + (f"<td>{_share(row.exact, color)}</td>" if captioned else "") + "</tr>"
        for row in table.rows
    )
    exact = '<th scope="col">exact</th>' if captioned else ""
    return (
        f'<div class="scroll"><table class="breakdown"><thead><tr><th scope="col">{escape(table.attribute)}</th>'
        f'<th scope="col">{what}</th><th scope="col">R@{CUTOFF}</th>{exact}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _share(share: Share | None, color: str) -> str:
    """A share with a bar that also marks its interval."""
    if share is None:
        return "–"
    ends = f"left:{100 * share.low:.1f}%;width:{100 * (share.high - share.low):.1f}%"
    return (
        f'<b>{100 * share.value:.1f}%</b><span class="share"><i style="width:{100 * share.value:.1f}%;'
        f'background:var(--{color})"></i><u style="{ends}"></u></span>'
        f"<small>{100 * share.low:.1f} to {100 * share.high:.1f}%</small>"
    )


def _confusion(matrix: ConfusionMatrix | None, color: str) -> str:
    """A table of which class images were given to; the more of a row's images, the stronger a cell's colour."""
    if matrix is None:
        return ""

    def cell(count: float, total: float) -> str:
        if count == 0:
            return "<td></td>"
        tint = f"color-mix(in srgb, var(--{color}) {12 + 58 * count / total:.0f}%, var(--surface))"
        return f'<td style="background:{tint}">{count:.3g}</td>'

    head = "".join(f'<th scope="col" dir="auto">{escape(name)}</th>' for name in matrix.classes)
    body = "".join(
        f'<tr><th scope="row" dir="auto">{escape(name)}</th>{"".join(cell(count, sum(row)) for count in row)}</tr>'
        for name, row in zip(matrix.classes, matrix.counts, strict=True)
    )
    return (
        f"<div><h3>Confusion matrix of {escape(matrix.by)}</h3>"
        '<p class="note">Images by what they show (rows) and by the class they are given to (columns). Classes of '
        'equal similarity share an image.</p><div class="scroll"><table class="confusion"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def _mistakes(title: str, answered: str, mistakes: Sequence[Mistake]) -> str:
    """A table of wrong answers, the most frequent first."""
    if not mistakes:
        return ""
    rows = "".join(
        f'<tr><td>{one.count:,}</td><th scope="row" dir="auto">{escape(one.answer)}</th>'
        f'<td dir="auto">{escape(", ".join(one.instead_of))}{", …" if one.several else ""}</td></tr>'
        for one in mistakes
    )
    return (
        f'<div><h3>{title}</h3><p class="note">The most frequent wrong answers, and what the images really show.</p>'
        f'<div class="scroll"><table class="mistakes"><thead><tr><th scope="col">times</th><th scope="col">{answered}'
        f'</th><th scope="col">of images that show</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )
