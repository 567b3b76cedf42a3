"""Scores a trained run on its splits, and adds the scores to its report."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from mmlm.cli.arguments import EvaluateArguments
from mmlm.cli.hydra_config import evaluators_of
from mmlm.cli.named_paths import named_paths
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import UserError
from mmlm.core.figure import Figure, declared, in_order, without_helpers
from mmlm.core.wording import cut
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.recognise import recognise
from mmlm.data.sources import Source
from mmlm.data.stored import Place
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.unreadable import Unreadable
from mmlm.evaluation.evaluate import Evaluation, evaluation_figures
from mmlm.evaluation.evaluators import CaptionQuality, Evaluator
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.experiment.build import build_evaluators, build_splits, class_captions, evaluation_batches
from mmlm.experiment.compatibility import check_evaluators
from mmlm.experiment.config import Config
from mmlm.experiment.config_file import config_text, parse_config
from mmlm.experiment.device import choose_device
from mmlm.experiment.experiment import find_splits
from mmlm.experiment.saved_run import load_run
from mmlm.record.console import Console
from mmlm.record.environment import working_folder_of_run
from mmlm.record.figures import RunFigures, record_figures
from mmlm.reports.page import write_report
from mmlm.training.messages import describe_corrupt

COUNTS = ("images", "captions")
"""What ``Evaluation.write`` returns of a split besides the values of its evaluators."""
NEGLIGIBLE = 1e-5
"""Values below this are shown as 0.000."""
WIDTH = 80
"""Columns of a terminal that the table fits into."""


def evaluate_run(arguments: EvaluateArguments) -> int:
    """Evaluates the splits, prints a table of the scores and rewrites the report; returns the exit status."""
    device = choose_device(arguments.device)
    run = load_run(str(chosen_run(arguments.run)), device, arguments.plugins)
    config = _in_language(_with_evaluators(run.config, arguments), run.tokenizer, arguments)
    evaluators = _decoding(build_evaluators(config), arguments.decoding)
    check_evaluators(evaluators, run.model.decoder is not None)
    console = Console()
    others = {} if arguments.data is None else named_paths("data", arguments.data)
    others = {name: place.resolve() if isinstance(place, Path) else place for name, place in others.items()}
    own, folder = _own_splits(config, arguments), run.folder.resolve()
    with _where_trained(config, own, folder, console):
        groups, described = _splits(config, run.tokenizer, own, others, console)
        found_out = [find_splits(group, slot, run.tokenizer, evaluators) for slot, group in groups.items()]
        findings = [found.accepted() for found in found_out]
        splits = {name: batches for of_group in groups.values() for name, batches in of_group.items()}
        for line in chain.from_iterable(found.lines for found in findings):
            console.line(line)
        for name, batches in splits.items():
            for line in batches.remarks():
                console.line(f"{name}: {line}")
        figures = evaluation_figures(evaluators)
        record_figures(folder, RunFigures(evaluation=figures))
        without = {split: names for found in findings for split, names in found.without.items()}
        with console.activity() as activity:
            evaluation = Evaluation.of(
                run,
                evaluators,
                config.data.max_tokens,
                device,
                arguments.precision,
                tick=activity.update,
                without=without,
                tell=console.line,
            )
            scores = evaluation.write(folder, run.step, splits, config.samples, config.data.language, described)
    console.line(f"{run.folder} at step {run.step}, scored in {evaluation.precision}")
    for name, batches in splits.items():
        if batches.corrupt:
            console.line(describe_corrupt(name, Unreadable(dict.fromkeys(batches.corrupt))))
    for line in score_table(scores, figures, WIDTH):
        console.line(line)
    with console.activity() as activity:
        activity.update("writing the report")
        page = write_report(run.folder)
    console.line(f"report: {page}")
    return 0


def _with_evaluators(config: Config, arguments: EvaluateArguments) -> Config:
    """The run's config with the evaluators that the command asks for. Raises UserError."""
    if arguments.evaluators is None:
        return config
    changed = replace(config, evaluators=evaluators_of(arguments.evaluators))
    # Read again as a config is: nodes may refer to other keys (``${data.language}``), and their arguments are checked.
    return parse_config(config_text(changed), f"evaluators={arguments.evaluators}")


def _decoding(evaluators: Mapping[str, Evaluator], decoding: GenerationSettings) -> Mapping[str, Evaluator]:
    """The evaluators, those of captions with the ``decoding`` that was asked for. Raises UserError."""
    if decoding == GenerationSettings():
        return evaluators
    if not any(isinstance(one, CaptionQuality) for one in evaluators.values()):
        raise UserError("decoding: none of the evaluators scores written captions; set evaluators=captioning")
    return {
        name: CaptionQuality(one.language, decoding) if isinstance(one, CaptionQuality) else one
        for name, one in evaluators.items()
    }


def _in_language(config: Config, tokenizer: Tokenizer, arguments: EvaluateArguments) -> Config:
    """The config with the language that other images are captioned and scored in. Raises UserError."""
    if arguments.language is None:
        return config
    if arguments.data is None or arguments.splits:
        # Their scores in another language would stand among those in the run's, under the same names.
        raise UserError("language: is for the images of data=; the splits of a run are scored in its own language")
    try:
        tokenizer.start_id(arguments.language)
    except UserError as error:
        raise UserError(f"language: {error}") from None
    return replace(config, data=replace(config.data, language=arguments.language))


@contextlib.contextmanager
def _where_trained(config: Config, own: set[str], folder: Path, console: Console) -> Iterator[None]:
    """A context in which relative paths of the splits ``own`` begin where they began for the run in ``folder``.

    So a run's data are found from anywhere. Says so where the current folder is another one, and it matters.
    """
    place = working_folder_of_run(folder) if own else None
    nodes = [node for name, node in {**config.data.validation, **config.data.test}.items() if name in own]
    if place is None or place == Path.cwd() or not _names_file(nodes, place):
        yield
        return
    console.line(f"the run's own data are read from {place}, where it was trained")
    with contextlib.chdir(place):
        yield


def _names_file(node: object, place: Path) -> bool:
    """Whether some text in a node of the config is the relative path of something that lies in ``place``."""
    if isinstance(node, str):
        return node != "" and not Path(node).is_absolute() and (place / node).exists()
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return any(_names_file(one, place) for one in inner)


def _own_splits(config: Config, arguments: EvaluateArguments) -> set[str]:
    """The names of the run's own splits to score. Raises UserError."""
    names = arguments.splits
    if names is None:
        names = [] if arguments.data is not None else ["validation"]
    return _choose(config, names) if names or arguments.data is None else set()


def _splits(
    config: Config, tokenizer: Tokenizer, own: set[str], others: Mapping[str, Place], console: Console
) -> tuple[dict[str, dict[str, EvaluationBatches]], dict[str, str]]:
    """The splits to score, by the key that messages about them are headed by; a line about each of ``others``.

    Raises UserError.
    """
    groups: dict[str, dict[str, EvaluationBatches]] = {}
    for group in ("validation", "test"):
        nodes = {name: node for name, node in getattr(config.data, group).items() if name in own}
        groups[f"data.{group}"] = build_splits(config, tokenizer, nodes, f"data.{group}")
    sources: dict[str, Source] = {}
    described: dict[str, str] = {}
    for name, path in others.items():
        if name in {*config.data.validation, *config.data.test}:
            raise UserError(f"data: '{name}' is a split of this run; give the images another name: data=NAME:{path}")
        found = recognise(path, config.data.language, class_captions(config))
        console.line(f"{name}: {path}, taken as {found.what}: {len(found.source):,} examples")
        # The page is passed around, and should not name the folders of a machine.
        sources[name], described[name] = found.source, f"not of this run: {path.name}, {found.what}"
    if others:
        groups["data"] = evaluation_batches(config, tokenizer, sources)
    return groups, described


def _choose(config: Config, names: list[str]) -> set[str]:
    """The splits that ``names`` stand for, each the name of a split or of a group. Raises UserError."""
    groups = {"validation": list(config.data.validation), "test": list(config.data.test)}
    # For messages: a group without splits is nothing to choose, and a split may have the name of its group.
    known = list(dict.fromkeys([*filter(groups.get, groups), *(name for group in groups.values() for name in group)]))
    chosen: set[str] = set()
    for name in names:
        if name not in known and name not in groups:
            raise UserError(f"splits: '{name}' is no split of this run; there are: {', '.join(known)}")
        chosen |= set(groups.get(name, [name]))
    if not chosen:
        raise UserError(f"splits: {', '.join(names) or '[]'} holds no split of this run; there are: {', '.join(known)}")
    return chosen


def score_table(scores: Mapping[str, Mapping[str, float]], figures: Mapping[str, Figure], width: int) -> list[str]:
    """One line a value, one column a split; shares of 1 are in per cent. The counts of the split come first.
    Intervals and levels of chance are left to the report.

    Splits that do not fit into ``width`` characters beside each other stand below: names may be cut, numbers never.
    """
    known = without_helpers(figures, dict.fromkeys(key for values in scores.values() for key in values))
    names = [*(name for name in known if name in COUNTS), *in_order(figures, [n for n in known if n not in COUNTS])]
    margin = max(len(name) for name in names)
    blocks: list[list[list[str]]] = []
    room = 0
    for split, values in scores.items():
        cells = [_cell(values.get(name), declared(figures, name)) for name in names]
        least = max(map(len, cells))
        column = [cut(split, max(least, width - margin - 2)), *cells]
        needed = max(_NARROWEST, *map(len, column)) + 2
        if not blocks or room < needed:
            blocks.append([])
            room = width - margin
        room -= needed
        blocks[-1].append([f"{cell:>{needed}}" for cell in column])
    lines: list[str] = []
    for number, block in enumerate(blocks):
        rows = zip(["", *names], *block, strict=True)
        lines += [""] * (number > 0) + [f"{name:<{margin}}" + "".join(cells) for name, *cells in rows]
    return lines


_NARROWEST = 10
"""Characters of a column at least."""


def _cell(value: float | None, figure: Figure) -> str:
    if value is None:
        return "-"
    if figure.share:
        return f"{100 * value:.1f}%"
    if isinstance(value, int) or (value.is_integer() and value != 0):
        return f"{value:.0f}"  # a count, whole
    # Four digits, but for what is nothing: BLEU without a match is 1e-10 to 1e-6, as in the reference implementation.
    return "0.000" if abs(value) < NEGLIGIBLE else f"{value:.4g}"
