"""The matching rule: how many steps each cell trains for, so that what the study holds equal is equal."""

from collections.abc import Mapping

from mmlm.core.errors import UserError
from mmlm.studies.costs import CostBook
from mmlm.studies.grid import Cell
from mmlm.studies.settings import Equal, Study


def matched_steps(study: Study, cells: Mapping[str, Cell], costs: CostBook) -> dict[str, int]:
    """The optimizer steps of each cell by the study's rule; empty if every cell has its own.

    The baseline keeps its own steps, and every other cell gets those that come closest to what the baseline sees,
    computes or takes. Raises UserError for a cell that sets ``train.steps`` itself under such a rule, and for numbers
    of parameters that are too far apart.
    """
    equal, baseline = study.matching.equal, cells[study.baseline]
    if equal is Equal.nothing:
        return {}
    for cell in cells.values():
        own = [token for token in cell.overrides[len(study.base) :] if token.lstrip("+").startswith("train.steps=")]
        if own:
            raise UserError(
                f"cell {cell.name}: {own[0]}: matching.equal={equal.value} sets the steps by the baseline's; set them "
                "in base, or use matching.equal=nothing"
            )
    if equal is Equal.parameters:
        _check_parameters(study, cells, costs)
    train = baseline.config.train
    if equal is Equal.flops:
        budget = costs.counted(baseline).flops(train.steps)
        return {
            name: train.steps if cell is baseline else costs.counted(cell).steps_for(budget)
            for name, cell in cells.items()
        }
    if equal is Equal.time:
        seconds = {name: costs.measured(cell).seconds for name, cell in cells.items()}
        return {name: max(1, round(train.steps * seconds[study.baseline] / own)) for name, own in seconds.items()}
    examples = train.steps * train.batch_size
    return {name: max(1, round(examples / cell.config.train.batch_size)) for name, cell in cells.items()}


def _check_parameters(study: Study, cells: Mapping[str, Cell], costs: CostBook) -> None:
    counts = {name: costs.counted(cell).parameters for name, cell in cells.items()}
    own = counts[study.baseline]
    apart = {name: count for name, count in counts.items() if abs(count - own) > study.matching.tolerance * own}
    if apart:
        told = ", ".join(f"{name} {count:,} ({100 * (count / own - 1):+.1f}%)" for name, count in apart.items())
        raise UserError(
            f"matching.equal=parameters: {told} against {own:,} of {study.baseline}, which is more than "
            f"{100 * study.matching.tolerance:g}% apart; change widths or depths, or matching.tolerance"
        )
