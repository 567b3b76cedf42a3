"""Gives each image of a folder to the label whose prompts are nearest, with probabilities."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmlm.cli.arguments import ClassifyArguments
from mmlm.cli.exits import say
from mmlm.commands.indexed import chosen_folder, image_folder, indexed, open_to_compare
from mmlm.core.errors import UserError
from mmlm.core.wording import cut, printable
from mmlm.evaluation.zero_shot import PLACE, check_templates, class_probabilities
from mmlm.experiment.build import class_captions
from mmlm.experiment.config_file import load_config
from mmlm.experiment.device import choose_device
from mmlm.experiment.saved_run import is_exported
from mmlm.experiment.similarity_scale import chosen_scale
from mmlm.pretrained.image_index import default_folder
from mmlm.record.folder import CONFIG, write_whole

_LABEL_WIDTH = 28
"""Characters of a label in the table, at most."""


def classify_images(arguments: ClassifyArguments) -> int:
    """Prints the labels of every image that can be read; returns the exit status. Raises UserError."""
    if arguments.top < 1:
        raise UserError(f"top: {arguments.top} must be at least 1")
    labels = read_labels(Path(arguments.labels))
    device, images = choose_device(arguments.device), image_folder(arguments.images)
    folder = chosen_folder(arguments.run)
    templates = _templates(folder, arguments)
    check_templates(templates)
    whose = "this folder" if is_exported(folder) else "this run"
    chosen_scale(arguments.scale, None, whose)  # a mistake is told before anything is loaded
    model = open_to_compare(folder, device, arguments.plugins)
    scale = chosen_scale(arguments.scale, model.scale, whose)
    classes = model.label_vectors(labels, templates, arguments.language)
    index = indexed(model, images, default_folder(images) if arguments.out is None else Path(arguments.out))
    probabilities = class_probabilities(index.vectors, classes.cpu(), scale.value)
    say(f"probabilities: softmax over {scale.value:.4g} x similarity, the scale {scale.source}")
    say(f"prompts: {', '.join(templates)}")
    names = [printable(name) for name in index.names]
    for line in _table(names, [printable(label) for label in labels], probabilities, arguments.top):
        print(line)
    if arguments.csv is not None:
        _write_csv(Path(arguments.csv), names, list(labels), probabilities)
        print(f"csv: {arguments.csv}")
    return 0


def read_labels(file: Path) -> Mapping[str, Sequence[str]]:
    """The words of each label, in the order of the file. Raises UserError.

    A text file has a label a line, whose words are the label itself; blank lines are passed over. A JSON file is an
    object of labels, each with its words or a list of several.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"labels: {file} cannot be read ({error.strerror}); write a file with one label a line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"labels: {file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if file.suffix.lower() == ".json":
        found = _labels_of_json(file, text)
    else:
        found = {}
        for number, line in enumerate(text.splitlines(), start=1):
            label = line.strip()
            if label in found:
                raise UserError(f"labels: {file}: line {number}: '{label}' is there twice; remove one")
            if label:
                found[label] = [label]
    if len(found) < 2:
        raise UserError(f"labels: {file} has {len(found)}; write at least two, one a line")
    return found


def _labels_of_json(file: Path, text: str) -> dict[str, list[str]]:
    def refuse_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
        for name, _ in pairs:
            if sum(name == other for other, _ in pairs) > 1:
                raise UserError(f"labels: {file}: '{name}' is there twice; remove one")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=refuse_twice)
    except ValueError as error:
        raise UserError(f"labels: {file} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f'labels: {file} must be an object, such as {{"cat": ["cat", "kitten"], "dog": "dog"}}')
    found = {label: [words] if isinstance(words, str) else words for label, words in content.items()}
    for label, words in found.items():
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise UserError(f"labels: {file}: '{label}' must have words, a text or a list of texts")
    return found


def _templates(folder: Path, arguments: ClassifyArguments) -> list[str]:
    if arguments.templates is not None:
        return arguments.templates
    if is_exported(folder):
        return [PLACE]
    config = load_config(folder / CONFIG, arguments.plugins)
    return [class_captions(config, PLACE).caption]


def _table(names: Sequence[str], labels: Sequence[str], probabilities: Tensor, top: int) -> list[str]:
    """One line an image: its most probable labels, and its path."""
    shown = [cut(label, _LABEL_WIDTH) for label in labels]
    width = max(map(len, shown))
    values, order = probabilities.sort(dim=1, descending=True, stable=True)
    lines = []
    for name, best, which in zip(names, values[:, :top].tolist(), order[:, :top].tolist(), strict=True):
        cells = [f"{100 * value:5.1f}% {shown[label]:<{width}}" for value, label in zip(best, which, strict=True)]
        lines.append("  ".join([*cells, name]))
    return lines


def _write_csv(file: Path, names: Sequence[str], labels: Sequence[str], probabilities: Tensor) -> None:
    """Writes the table of all probabilities. Raises UserError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "probability", *(f"probability of {label}" for label in labels)])
    best = torch.argmax(probabilities, dim=1).tolist()
    for name, label, row in zip(names, best, probabilities.tolist(), strict=True):
        writer.writerow([name, labels[label], f"{row[label]:.6f}", *(f"{value:.6f}" for value in row)])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"csv: {file.parent} cannot be written ({error.strerror}); give another file") from error
    write_whole(file, text.getvalue())
