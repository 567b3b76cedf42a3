"""What is checked and told of a run before its first step, once its parts are built."""

from mmlm.core.distributed import rank
from mmlm.core.errors import UserError
from mmlm.data.remarks import remarks_of
from mmlm.data.tokenizer import describe_cut
from mmlm.evaluation.evaluate import evaluator_of
from mmlm.experiment.config import Config
from mmlm.experiment.experiment import Experiment
from mmlm.record.console import Console
from mmlm.record.figures import RunFigures


def check_best_metric(config: Config, experiment: Experiment, figures: RunFigures) -> None:
    """Raises UserError if the best checkpoint would be the worst one."""
    name = config.train.best_metric or ""
    figure = figures.evaluation.get(name.partition("/")[2])
    if figure is not None and figure.higher_is_better is False:
        raise UserError(
            f"train.best_metric: '{name}' is the better the lower it is, and the checkpoint of the highest value "
            "is kept; choose another"
        )
    split, _, value = name.partition("/")
    without = experiment.findings.without.get(split, {})
    evaluator = evaluator_of(value, experiment.evaluators)
    if evaluator is not None and evaluator in without:
        raise UserError(
            f"train.best_metric: '{name}' is not evaluated: evaluators.{evaluator} is left out of the split "
            f"{split}, which {without[evaluator]}"
        )


def tell_findings(config: Config, experiment: Experiment, console: Console) -> None:
    """Says what is not trained or scored of the data, before the first step."""
    if rank() == 0:
        captions, most = experiment.train_source.captions(), config.data.max_tokens
        cut = describe_cut(experiment.tokenizer, captions, most)
        if cut is not None:
            console.line(f"data.train: {cut}")
        for line in remarks_of(experiment.train_source):
            console.line(f"data.train: {line}")
        for name, batches in experiment.validation.items():
            for line in batches.remarks():
                console.line(f"data.validation.{name}: {line}")
    for line in (*experiment.started, *experiment.findings.lines):
        console.line(line)
