"""``python -m mmlm.bench statistics``: are the tests, intervals and forecasts of ``mmlm/statistics/`` right?

Studies are made up, of which the truth is known, and how often each promise is kept is counted.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmlm.bench.cells import check_at_least, check_out
from mmlm.bench.settings import StatisticsSettings
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import UserError
from mmlm.reports.paired import Items, read_items
from mmlm.statistics.ladder_validation import ladder_rates
from mmlm.statistics.looks import LookPlan, Spending
from mmlm.statistics.sign_flips import seeds_for_a_test
from mmlm.statistics.simulation import MadeUpStudies, RecordedStudies, Studies
from mmlm.statistics.validation import (
    BOOTSTRAPS,
    PowerCheck,
    Share,
    beyond_power_check,
    error_rates,
    looks_error_rate,
    pilot,
    power_check,
)

CELLS = 4
"""Of each study: three contrasts with the first of them."""
MADE_UP: Mapping[str, MadeUpStudies] = {
    "alike": MadeUpStudies(),
    "lopsided seeds": MadeUpStudies(lopsided=True, own_seed=0.2),
    "alike but for the items": MadeUpStudies(recipe=0.35),
}
LADDERS = 5
"""Studies for each pair of ladders, which take longer."""
FALSE = 0.05
"""Studies with a false finding, at most."""
COVERED = (0.93, 0.97)
POWER_OFF = 0.03
CHANCE = 1.7
"""Half widths of 95% that a figure may stray by: each of some forty does so once in a thousand times."""
EFFECTS = (1.0, 1.5)
"""In deviations of a paired difference."""
WITHIN = "alike but for the items"
"""Where a test on the items given may well find a difference: there is one, on these."""


def measure_statistics(settings: StatisticsSettings, argv: Sequence[str]) -> int:
    """Counts and prints the tables; returns 1 if a promise is broken. The page names ``argv`` as its command.

    Raises UserError.
    """
    check_at_least(1, {"studies": settings.studies})
    if not settings.seeds:
        raise UserError("seeds: [] is empty; name the numbers of seeds to try, as in seeds=[3,8]")
    for seeds in settings.seeds:
        check_at_least(2, {"seeds": seeds})
    check_out(settings.out)
    kinds: dict[str, Studies] = dict(MADE_UP)
    if settings.runs is not None:
        kinds["recorded"] = read_recorded_studies(settings.runs, settings.score)
    broken: list[str] = []
    text = "\n".join(_document(settings, argv, kinds, broken))
    print(text)
    if settings.out is not None:
        Path(settings.out).write_text(text + "\n", encoding="utf-8")
    return 1 if broken else 0


def read_recorded_studies(folders: Sequence[str], score: str) -> RecordedStudies:
    """The scores of runs of one recipe, item by item. Raises UserError."""
    split, _, figure = score.partition("/")
    runs: list[Items] = []
    for folder in folders:
        found = read_items(chosen_run(folder)).get((split, figure))
        if found is None:
            raise UserError(f"score: {folder} has no {score} item by item; name a split/score that it has so")
        if runs and found.names != runs[0].names:
            raise UserError(f"runs: {folder} and {folders[0]} have not the same items of {split}")
        runs.append(found)
    if len(runs) < 2:
        raise UserError(f"runs: {len(runs)} given, and at least 2 seeds of one recipe are needed to draw from")
    return RecordedStudies(np.stack([one.values for one in runs]), runs[0].concept)


def _document(
    settings: StatisticsSettings, argv: Sequence[str], kinds: Mapping[str, Studies], broken: list[str]
) -> Iterator[str]:
    """The lines of the whole text. Names what is outside of its bounds in ``broken``."""
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'statistics', *argv])}`"
    yield ""
    yield (
        f"{settings.studies:,} studies in each line, of {CELLS} cells with no difference; ± is half of a 95% interval "
        "of what stands before it. Made-up scores are right or wrong, of 600 items in 150 concepts."
    )
    yield ""
    yield from _errors(settings, kinds, broken)
    yield ""
    yield from _power(settings, broken)
    yield ""
    yield from _looks(settings, broken)
    yield ""
    yield from _ladders(settings, broken)
    yield ""
    yield "All within bounds." if not broken else f"Outside of bounds: {'; '.join(broken)}."


def _errors(settings: StatisticsSettings, kinds: Mapping[str, Studies], broken: list[str]) -> Iterator[str]:
    yield (
        "Studies with a false finding (at most 5%), by the test over seeds and by that over seeds and items; and how "
        "often a 95% interval holds the truth for all seeds and items (93 to 97%): ours, Student's t over seeds alone, "
        "and bootstraps."
    )
    yield ""
    yield (
        "| recipes | seeds | over seeds, % | and items, % | ours, % | t over seeds, % | "
        + " | ".join(f"{name}, %" for name in BOOTSTRAPS)
        + " |"
    )
    yield "|---|" + "--:|" * (5 + len(BOOTSTRAPS))
    for kind, studies in kinds.items():
        for seeds in settings.seeds:
            print(f"{kind}, {seeds} seeds", file=sys.stderr, flush=True)
            found = error_rates(studies, seeds, CELLS, settings.studies, bootstrap=True)
            if kind != WITHIN:
                _at_most(found.any_on_items, FALSE, f"false findings, {kind}, {seeds} seeds", broken)
            _at_most(found.any_beyond, FALSE, f"false findings beyond the items, {kind}, {seeds} seeds", broken)
            _covered(found.by_both, f"coverage, {kind}, {seeds} seeds", broken)
            none = seeds < seeds_for_a_test()
            tests = ["no test"] * 2 if none else [_cell(found.any_on_items), _cell(found.any_beyond)]
            shares = [found.by_both, found.by_seeds, *(found.bootstraps[name] for name in BOOTSTRAPS)]
            yield f"| {kind} | {seeds} | {' | '.join([*tests, *map(_cell, shares)])} |"


def _power(settings: StatisticsSettings, broken: list[str]) -> Iterator[str]:
    yield (
        "Power: how many studies find the true difference of one cell, as forecast from the variances of earlier "
        "studies, and as it came (within 3 points). Over seeds, the recipes are alike but for it. Over seeds and "
        "items, they differ by item too, and the difference is the smallest that is said to be found in four "
        "of five cases."
    )
    yield ""
    yield "| test | seeds | contrasts | true difference, points | forecast, % | found, % |"
    yield "|---|--:|--:|--:|--:|--:|"
    alike, by_item = MADE_UP["alike"], MADE_UP[WITHIN]
    for_seeds, for_items = pilot(alike), pilot(by_item)
    for seeds in settings.seeds:
        if seeds < seeds_for_a_test():
            continue
        for cells in (2, CELLS):
            for effect in EFFECTS:
                true = effect * for_seeds.seed_deviation
                found = power_check(alike, for_seeds, seeds, cells, true, settings.studies)
                yield _power_row("over seeds", cells, found, broken)
            found = beyond_power_check(by_item, for_items, seeds, cells, settings.studies)
            yield _power_row("and items", cells, found, broken)


def _power_row(test: str, cells: int, found: PowerCheck, broken: list[str]) -> str:
    if abs(found.found.value - found.forecast) > POWER_OFF + CHANCE * found.found.error:
        broken.append(f"power {test}, {found.seeds} seeds, {cells - 1} contrasts")
    return (
        f"| {test} | {found.seeds} | {cells - 1} | {100 * found.effect:.1f} | {100 * found.forecast:.1f} "
        f"| {_cell(found.found)} |"
    )


def _looks(settings: StatisticsSettings, broken: list[str]) -> Iterator[str]:
    yield "Looks at 8, 10 and 12 seeds: studies in which any of them has a false finding (at most 5%)."
    yield ""
    yield "| spending | looks that can stop | false findings, % |"
    yield "|---|---|--:|"
    for spending in Spending:
        plan = LookPlan((8, 10, 12), spending=spending)
        found = looks_error_rate(MADE_UP["alike"], plan, CELLS, settings.studies)
        _at_most(found, FALSE, f"false findings of looks, {spending.value}", broken)
        yield f"| {spending.value} | {', '.join(map(str, plan.looks_that_can_stop()))} | {_cell(found)} |"


def _ladders(settings: StatisticsSettings, broken: list[str]) -> Iterator[str]:
    count = max(1, settings.studies // LADDERS)
    yield (
        f"{count:,} pairs of ladders of 5 sizes, a hundredfold in compute, with 0.7% of noise: how often a 95% "
        "interval holds the measured loss of the largest size, which was held out, the law at three times its "
        "compute, and the crossing of the two (93 to 97%)."
    )
    yield ""
    yield "| seeds | largest size, % | law beyond it, % | crossing, % |"
    yield "|--:|--:|--:|--:|"
    for seeds in settings.seeds:
        print(f"ladders, {seeds} seeds", file=sys.stderr, flush=True)
        found = ladder_rates(seeds, count)
        shares = (found.largest, found.band, found.crossing)
        for name, share in zip(("largest size", "law", "crossing"), shares, strict=True):
            _covered(share, f"{name} of ladders, {seeds} seeds", broken)
        yield f"| {seeds} | {' | '.join(map(_cell, shares))} |"


def _covered(found: Share, name: str, broken: list[str]) -> None:
    low, high = COVERED
    if not low - CHANCE * found.error <= found.value <= high + CHANCE * found.error:
        broken.append(name)


def _at_most(found: Share, bound: float, name: str, broken: list[str]) -> None:
    if found.value > bound + CHANCE * found.error:
        broken.append(name)


def _cell(found: Share) -> str:
    return f"{100 * found.value:.1f} ± {100 * found.error:.1f}"
