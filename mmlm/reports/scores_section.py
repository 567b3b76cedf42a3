"""The report's section of scores: a table of every split, with the meaning of each metric in plain words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from mmlm.reports.run_folder import RunFolder, Scores, SplitScores

SERIES_COLORS = 6
"""Number of colours for splits; a seventh split has the first one's colour again."""


@dataclass(frozen=True)
class Metric:
    """One row of the scores table: a metric with its name and its meaning in plain words."""

    key: str
    name: str
    meaning: str
    share: bool = False
    """True for a share of 1, which is shown in per cent."""


@dataclass(frozen=True)
class MetricGroup:
    """The rows of the scores table that answer one question."""

    name: str
    question: str
    metrics: tuple[Metric, ...]


def _recall(direction: str) -> tuple[Metric, ...]:
    places = {1: "it is the nearest", 5: "it is among the 5 nearest", 10: "it is among the 10 nearest"}
    return tuple(Metric(f"{direction}/R@{k}", f"R@{k}", place, share=True) for k, place in places.items())


CROWDED = 3
"""With more splits than this, the table takes the layout for many columns."""

GAP = "image_use_gap"

GROUPS = (
    MetricGroup(
        "Image to text",
        "How often is a true caption of the image found among all captions of the split?",
        _recall("image_to_text"),
    ),
    MetricGroup(
        "Text to image",
        "How often is an image of the caption found among all images of the split?",
        _recall("text_to_image"),
    ),
    MetricGroup(
        "Captioning",
        "How close is the caption that the decoder wrote to the true ones?",
        (
            Metric("captioning/exact", "Exact", "word for word a true caption", share=True),
            Metric("captioning/CIDEr-D", "CIDEr-D", "shared runs of 1 to 4 words, rare ones count more; 0 to 10"),
            Metric("captioning/BLEU-4", "BLEU-4", "shared runs of 1 to 4 words, over the whole split; 0 to 1"),
            Metric("captioning/ROUGE-L", "ROUGE-L", "longest common sequence of words; 0 to 1"),
        ),
    ),
    MetricGroup(
        "Grounding",
        "Does the decoder use its image at all?",
        (
            Metric(
                f"{GAP}/mean",
                "Image-use gap",
                "caption loss with shuffled images minus with the true ones, nats a token, "
                "with its 95% interval; 0 if the image is ignored",
            ),
        ),
    ),
)


def split_colors(run: RunFolder) -> Mapping[str, str]:
    """A colour (name of a CSS variable) for each split in the run's metrics, scores or samples."""
    scored = run.scores.splits if run.scores else ()
    names = dict.fromkeys((*run.metrics.splits, *scored, *run.samples))
    return {name: f"series-{i % SERIES_COLORS + 1}" for i, name in enumerate(names)}


def newest_scores(run: RunFolder) -> Scores | None:
    """``scores.json``, or else the newest evaluation in the metrics, or None when nothing was evaluated yet."""
    if run.scores is not None or not run.metrics.splits:
        return run.scores
    found: dict[str, dict[str, float]] = {name: {} for name in run.metrics.splits}
    step = max(series.steps[-1] for name, series in run.metrics.series.items() if not name.startswith("train/"))
    for name, series in run.metrics.series.items():
        split, _, metric = name.partition("/")
        if split in found and series.steps[-1] == step:
            found[split][metric] = series.last
    return Scores(step, {name: SplitScores(values) for name, values in found.items() if values})


NEGLIGIBLE = 1e-8
"""Scores below this are shown as 0: BLEU without a match is about 1e-10, as in the reference implementation."""


def format_value(value: float | None, share: bool = False) -> str:
    """A score for a table: 52.3%, 0.381, 1,234; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if share:
        return f"{100 * value:.1f}%"
    size = abs(value)
    if size >= 100 or size == 0:
        return f"{value:,.0f}"
    if size < NEGLIGIBLE:
        return "0"
    return f"{value:.2g}" if size < 0.001 else f"{value:.3f}" if size < 1 else f"{value:.2f}"


def headline(scores: Scores) -> str:
    """One sentence (HTML) on the first split: what an audience should remember. Empty without these scores."""
    name, split = next(iter(scores.splits.items()), ("", SplitScores({})))
    found, exact = split.values.get("image_to_text/R@5"), split.values.get("captioning/exact")
    said = []
    if found is not None and math.isfinite(found):
        among = f" of {split.captions:,}" if split.captions else ""
        images = f"{split.images:,} images" if split.images else "the images"
        said.append(f"for <b>{100 * found:.0f}%</b> of {images} a true caption is among the five nearest{among}")
    if exact is not None and math.isfinite(exact):
        said.append(f"<b>{100 * exact:.0f}%</b> are captioned in exactly the right words")
    return f"On <b>{escape(name)}</b>, {', and '.join(said)}." if said else ""


def scores_table(scores: Scores, colors: Mapping[str, str]) -> str:
    """The table of the main scores, a row a metric with its meaning and a column a split, and a fold of all scores."""
    head = "".join(_split_heading(name, split) for name, split in scores.splits.items())
    body = "".join(_group_rows(group, scores, colors) for group in GROUPS)
    # Next to many columns there is no room for the meaning of a metric: it goes below the name.
    crowded = " crowded" if len(scores.splits) > CROWDED else ""
    return (
        f'<div class="scroll"><table class="scores{crowded}"><thead><tr><th scope="col"><span class="note">at step '
        f"{scores.step:,}</span></th>{head}</tr></thead>{body}</table></div>{_all_scores(scores)}"
    )


def _split_heading(name: str, split: SplitScores) -> str:
    counts = ((split.images, "images"), (split.captions, "captions"))
    small = "".join(f"<small>{count:,} {what}</small>" for count, what in counts if count)
    unseen = f'<small class="unseen">{escape(split.description)}</small>' if split.description else ""
    return f'<th scope="col"><b>{escape(name)}</b>{unseen}{small}</th>'


def _group_rows(group: MetricGroup, scores: Scores, colors: Mapping[str, str]) -> str:
    known = [m for m in group.metrics if any(m.key in split.values for split in scores.splits.values())]
    if not known:
        return ""
    columns = len(scores.splits) + 1
    rows = "".join(
        f'<tr><th scope="row"><div><span class="metric">{escape(metric.name)}</span>'
        f'<span class="meaning">{escape(metric.meaning)}</span></div></th>'
        + "".join(_score_cell(metric, split, colors[name]) for name, split in scores.splits.items())
        + "</tr>"
        for metric in known
    )
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{columns}"><p><b>{escape(group.name)}</b>'
        f"{escape(group.question)}</p></th></tr>{rows}</tbody>"
    )


def _score_cell(metric: Metric, split: SplitScores, color: str) -> str:
    value = split.values.get(metric.key)
    extra = ""
    if metric.share and value is not None and math.isfinite(value):
        width = 100 * min(max(value, 0.0), 1.0)
        extra = f'<span class="share"><i style="width:{width:.1f}%;background:var(--{color})"></i></span>'
    low, high = split.values.get(f"{GAP}/low"), split.values.get(f"{GAP}/high")
    if metric.key == f"{GAP}/mean" and low is not None and high is not None:
        digits = 2 if max(abs(low), abs(high)) >= 1 else 3
        extra = f"<small>{low:.{digits}f} to {high:.{digits}f}</small>"
        if not low > 0:
            extra += '<span class="warning">not above 0</span>'
    return f"<td>{format_value(value, metric.share)}{extra}</td>"


def _all_scores(scores: Scores) -> str:
    names = dict.fromkeys(name for split in scores.splits.values() for name in split.values)
    head = "".join(f"<td><b>{escape(name)}</b></td>" for name in scores.splits)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{format_value(split.values.get(name))}</td>" for split in scores.splits.values())
        + "</tr>"
        for name in names
    )
    return (
        '<details class="more"><summary>Every score</summary><div class="scroll"><table class="plain">'
        f"<tr><th></th>{head}</tr>{rows}</table></div></details>"
    )
