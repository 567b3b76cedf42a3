"""The report's section of curves: losses, validation scores, diagnoses, and figures such as the learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mmlm.reports.charts import Line, draw_chart
from mmlm.reports.run_folder import Metrics, Series
from mmlm.reports.scores_section import GAP, GROUPS, SERIES_COLORS, Metric, format_value


@dataclass(frozen=True)
class Family:
    """Figures of diagnoses that share a chart: the metrics ``<name>/<line>``, one line each, or ``<name>`` alone."""

    name: str
    title: str
    log: bool = False


DIAGNOSES = (
    Family("gradient_at_bridge", "gradient at the bridge", log=True),
    Family("gradient_cosine", "cosine of gradients"),
    Family("effective_rank", "effective rank of embeddings"),
    Family("modality_gap", "modality gap"),
    Family("update_ratio", "update to weight ratio", log=True),
)

DIAGNOSES_NOTE = (
    "At some steps only. Gradients are those of the weighted objectives at the image tokens that the bridge reads; "
    "a cosine below 0 says that two objectives pull against each other there. Embeddings that collapse have an "
    "effective rank near 1."
)

LOSS_TERMS = ("contrastive", "captioning", "matching", "reconstruction", "distillation")
"""Names of training figures that are terms of the loss.

Terms of the loss are also the figures without a slash in their name that are not in ``CONDITIONS``, and those that a
split reports as ``loss/<name>``."""

CONDITIONS = ("lr", "examples_per_second", "gradient_norm")
"""Training figures without a slash in their name that are no losses."""

TRAINING_FIGURES = {"lr": "learning rate", "temperature": "temperature", "examples_per_second": "examples a second"}
"""The titles of training figures, in the order of their charts; other figures follow under their own names."""

NOISELESS = ("lr", "temperature")
"""Figures that have no noise: a running mean would only distort them."""

OVER_MAGNITUDES = ("perplexity",)
"""Figures that span orders of magnitude and get a logarithmic axis."""


def curves(metrics: Metrics, colors: Mapping[str, str]) -> str:
    """Small charts over steps: the loss and its terms, validation scores, diagnoses, then other training figures."""
    every = {n.removeprefix("train/"): series for n, series in metrics.series.items() if n.startswith("train/")}
    families = {family.name for family in DIAGNOSES}
    diagnoses = {name: series for name, series in every.items() if name.partition("/")[0] in families}
    weighted = {name: series for name, series in every.items() if _leaf(name) == "weighted"}
    train = {name: series for name, series in every.items() if name not in diagnoses and name not in weighted}
    reported = {name.split("/loss/", 1)[1] for name in metrics.series if "/loss/" in name}
    losses = [name for name in train if _is_loss(name) or name in reported]
    known = [name for figure in TRAINING_FIGURES for name in train if _leaf(name) == figure]
    others = [*known, *(name for name in train if name not in losses and name not in known)]
    scores = [_validation_chart(metric, metrics, colors) for group in GROUPS for metric in group.metrics]
    loss_charts = [_loss_chart(name, train[name], metrics, colors) for name in losses]
    if weighted:
        loss_charts.append(_weighted_chart([name for name in losses if name != "loss"], every))
    return "".join(
        (
            _block("Loss", loss_charts),
            _block("Validation", scores),
            _block("Diagnoses", [_family_chart(family, diagnoses) for family in DIAGNOSES], DIAGNOSES_NOTE),
            _block("Training", [_training_chart(name, train[name]) for name in others], small=True),
        )
    )


def _block(title: str, charts: Sequence[str], note: str = "", small: bool = False) -> str:
    if not any(charts):
        return ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<h3>{title}</h3>{said}<div class="charts{" small" * small}">{"".join(charts)}</div>'


def _is_loss(name: str) -> bool:
    return _leaf(name) in LOSS_TERMS or ("/" not in name and name not in CONDITIONS)


def _leaf(name: str) -> str:
    """The last part of a name: ``temperature`` of ``contrastive/temperature``."""
    return name.rsplit("/", 1)[-1]


def _loss_chart(name: str, series: Series, metrics: Metrics, colors: Mapping[str, str]) -> str:
    lines = {"train": Line(series, "ink", smooth=True)} | _split_lines(f"loss/{name}", metrics, colors)
    return _chart("total" if name == "loss" else name, lines, "loss: ")


def _weighted_chart(names: Sequence[str], train: Mapping[str, Series]) -> str:
    """The chart of what each term adds to the total. A term of weight 1 is not logged a second time as weighted."""
    series = {name: train.get(f"{name}/weighted", train[name]) for name in names}
    return _chart("what each adds to the total", _lines(series, smooth=True), "loss: ")


def _family_chart(family: Family, diagnoses: Mapping[str, Series]) -> str:
    found = {name: series for name, series in diagnoses.items() if name.partition("/")[0] == family.name}
    lines = _lines({name.partition("/")[2].replace("_", " "): series for name, series in found.items()})
    return _chart(family.title, lines, "diagnoses: ", log=family.log)


def _lines(series: Mapping[str, Series], smooth: bool = False) -> dict[str, Line]:
    """A line for each name in a colour of its own. A series under the empty name is the chart's only one, in ink."""
    colors = ["ink"] if "" in series else [f"series-{i % SERIES_COLORS + 1}" for i in range(len(series))]
    return {name: Line(one, color, smooth) for (name, one), color in zip(series.items(), colors, strict=True)}


def _validation_chart(metric: Metric, metrics: Metrics, colors: Mapping[str, str]) -> str:
    direction = {"image_to_text": "Image to text, ", "text_to_image": "Text to image, "}.get(
        metric.key.split("/")[0], ""
    )
    # Three ranks a direction crowd the page; the table has the others.
    if metric.key.endswith(("R@1", "R@10")) or metric.key in ("captioning/BLEU-4", "captioning/ROUGE-L"):
        return ""
    return _chart(direction + metric.name, _split_lines(metric.key, metrics, colors), "validation: ", metric.share)


def _training_chart(name: str, series: Series) -> str:
    figure = _leaf(name)
    title = TRAINING_FIGURES.get(figure, name.replace("/", " ").replace("_", " "))
    line = Line(series, "ink", smooth=figure not in NOISELESS)
    kind, log = f"training: {name}, ", figure in OVER_MAGNITUDES
    return _chart(title, {"": line}, kind, percent=figure == "accuracy", log=log)


def _split_lines(key: str, metrics: Metrics, colors: Mapping[str, str]) -> dict[str, Line]:
    bounds = {side: f"{GAP}/{side}" if key == f"{GAP}/mean" else "" for side in ("low", "high")}
    lines = {}
    for split in metrics.splits:
        series = metrics.series.get(f"{split}/{key}")
        if series is not None:
            low, high = (metrics.series.get(f"{split}/{bounds[side]}") for side in ("low", "high"))
            lines[split] = Line(series, colors[split], low=low, high=high)
    return lines


def _chart(title: str, lines: Mapping[str, Line], kind: str, percent: bool = False, log: bool = False) -> str:
    if not lines:
        return ""
    drawing = draw_chart(tuple(lines.values()), kind + title, percent, log)
    legend = _legend(lines, percent)
    return (
        f'<figure><figcaption><b>{escape(title)}</b><div class="legend">{legend}</div></figcaption>{drawing}</figure>'
    )


def _legend(lines: Mapping[str, Line], percent: bool) -> str:
    several: Sequence[str] = tuple(lines) if len(lines) > 1 or "" not in lines else ()
    if not several:
        return f"<span>now <b>{format_value(lines[''].drawn()[0].last, percent)}</b></span>"
    return "".join(
        f'<span><i style="background:var(--{lines[name].color})"></i>{escape(name)} '
        f"<b>{format_value(lines[name].drawn()[0].last, percent)}</b></span>"
        for name in several
    )
