"""Writes the model card of a run: the README.md of the folder that its model is exported to."""

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from mmlm.core.figure import declared, shown_in, without_helpers
from mmlm.experiment.config import Config
from mmlm.experiment.config_file import config_values
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.reports.run_folder import RunFolder

_CAPTIONING, _EMBEDDING = "image-to-text", "feature-extraction"
"""Tasks, by the names of the hub."""
_NOT_SHOWN = ("runs", "metrics", "device")
"""Settings of the machine that trained, which the card leaves out."""


def model_card(folder: RunFolder, config: Config, step: int, licence: str | None) -> str:
    """Markdown with the hub's YAML header: what the model is, how to use it, its data, its scores, how it was made.

    ``step`` is the step of the exported weights; scores of another step are left out. ``licence`` is the licence of the
    weights, an identifier of the hub such as ``mit``. Paths of the machine that trained are cut to their last name.
    """
    results = _results(folder, config, step)
    header = ModelCardData(
        language=_languages(config) or None,
        license=licence,
        library_name="mmlm",
        pipeline_tag=None if config.decoder is None else _CAPTIONING,
        tags=["mmlm", "image-text", "contrastive"],
        model_name=folder.experiment if results else None,
        eval_results=results or None,
    )
    values = _without_paths({key: value for key, value in config_values(config).items() if key not in _NOT_SHOWN})
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {folder.experiment}",
        _about(config),
        f"## How to use it\n\n{_usage(config)}",
        f"## Data\n\n{_data(values['data'])}",
        f"## Scores\n\n{_scores(folder, step)}",
        f"## Limits\n\n{_limits(config)}",
        f"## How it was made\n\n{_made(folder, config, step)}",
        f"<details><summary>The config</summary>\n\n```yaml\n{_yaml(values)}```\n\n</details>",
        f"## Licence\n\n{_licence(licence)}",
    ]
    return "\n\n".join(sections) + "\n"


def _languages(config: Config) -> list[str]:
    """The languages that the model was made for, as far as its config says."""
    of_tokenizer = config.tokenizer.get("languages") or []
    return list(dict.fromkeys([*filter(None, [config.data.language]), *map(str, of_tokenizer)]))


def _results(folder: RunFolder, config: Config, step: int) -> list[EvalResult]:
    """The scores of the exported weights for the hub: those of each split that ``compare`` shows, with their names."""
    if folder.scores is None or folder.scores.step != step:
        return []
    figures = folder.figures.evaluation
    sources = config.data.validation | config.data.test
    return [
        EvalResult(
            task_type=_CAPTIONING if name.startswith("captioning/") else _EMBEDDING,
            dataset_type=_name(sources.get(split)),
            dataset_name=split,
            metric_type=name,
            metric_name=declared(figures, name).title or declared(figures, name).name,
            metric_value=scores.values[name],
        )
        for split, scores in folder.scores.splits.items()
        for name in shown_in("compare", figures, scores.values)
        if math.isfinite(scores.values[name])
    ]


def _limits(config: Config) -> str:
    """What the model was not made for, as far as its config says."""
    languages = ", ".join(_languages(config))
    size, tokens = config.data.image_size, config.data.max_tokens
    lines = [
        f"- Images are seen at {size} x {size} pixels; smaller details are lost.",
        f"- Texts are read up to {tokens} tokens, start and end included; what is longer is cut.",
        f"- Its texts were in {languages} only." if languages else "- The language of its texts is not stated.",
        "- It knows what its training data show, with their mistakes and gaps. Scores hold for their splits: measure "
        "before you rely on it for images of another kind.",
    ]
    return "\n".join(lines)


def _about(config: Config) -> str:
    """One sentence: what the model can do, and its parts."""
    parts = [f"{slot} `{_name(getattr(config, slot))}`" for slot in MODEL_SLOTS]
    used = [part for part in parts if "`None`" not in part]
    abilities = "embeds images and texts in one space" + (" and captions images" if config.decoder is not None else "")
    return f"An image-text model of mmlm that {abilities}: {', '.join(used)}."


def _usage(config: Config) -> str:
    lines = [
        "from mmlm.pretrained import from_pretrained",
        "",
        'model = from_pretrained("FOLDER")  # or its name on the hub',
        'images = model.encode_image(["1.png", "2.png"])  # float32[2, E], unit length',
        'texts = model.encode_text(["a cat", "a dog"])    # float32[2, E], unit length',
        "similarity = images @ texts.T",
    ]
    lines += ['caption = model.caption("1.png").text'] if config.decoder is not None else []
    return "```python\n" + "\n".join(lines) + "\n```"


def _data(data: Mapping[str, Any]) -> str:
    groups = {"trained on": {"": data["train"]}, "validation": data["validation"], "test": data["test"]}
    lines = []
    for group, splits in groups.items():
        for name, node in splits.items():
            said = f"{group} `{name}`" if name else group
            settings = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_")
            lines.append(f"- {said}: `{_name(node)}`" + (f" ({settings})" if settings else ""))
    return "\n".join(lines)


def _scores(folder: RunFolder, step: int) -> str:
    """A table with a row for each score and a column for each split."""
    scores = folder.scores
    if scores is None or scores.step != step or not scores.splits:
        return "These weights have not been scored."
    every = dict.fromkeys(name for split in scores.splits.values() for name in split.values)
    names = without_helpers(folder.figures.evaluation, every)
    lines = [f"| | {' | '.join(f'`{name}`' for name in scores.splits)} |", "|---" * (len(scores.splits) + 1) + "|"]
    lines += [_row("images", [split.images for split in scores.splits.values()])]
    lines += [_row(name, [split.values.get(name) for split in scores.splits.values()]) for name in names]
    said = f"Taken in {scores.precision}.\n\n" if scores.precision else ""
    return said + "\n".join(lines)


def _row(name: str, values: list[float | None]) -> str:
    cells = ("" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for value in values)
    return f"| {name} | {' | '.join(cells)} |"


def _made(folder: RunFolder, config: Config, step: int) -> str:
    environment = folder.environment
    commit, dirty = environment.get("git_commit"), environment.get("git_dirty")
    packages = environment.get("packages")
    precision = environment.get("precision", config.train.precision.name)
    shown = packages.items() if isinstance(packages, Mapping) else ()
    lines = [
        f"- {step:,} optimizer steps of {config.train.batch_size:,} examples, seed {config.seed}, "
        f"{precision}, on {environment.get('device', 'an unknown device')}",
        f"- git commit {f'`{commit}`' if commit else 'unknown'}{', with changes' if dirty else ''}",
        f"- {sum(folder.parameters.values()):,} parameters: "
        + ", ".join(f"{part} {count:,}" for part, count in folder.parameters.items()),
        f"- {', '.join(f'{name} {version}' for name, version in shown) or 'package versions unknown'}",
    ]
    return "\n".join(lines)


def _licence(licence: str | None) -> str:
    weights = "not stated by whoever exported it; ask before you use it" if licence is None else licence
    return f"The weights: {weights}. The data keep their own licences. The code of mmlm is MIT."


def _name(node: Mapping[str, Any] | None) -> str:
    return "None" if node is None else str(node["_target_"]).rpartition(".")[2]


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _without_paths(value: Any) -> Any:
    """``value`` with every absolute path in it cut to its last name: a card should not name a machine's folders."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value
