"""What a study can find with its seeds, before they are trained: the last line of its plan."""

from mmlm.statistics.power import Prior, in_words, prior_from
from mmlm.studies.contrasts import Compared
from mmlm.studies.settings import Study


def power_line(study: Study, cells: int, first: Compared | None) -> str:
    """The smallest difference that can be found by the first score of a study of so many ``cells``.

    ``first`` are its contrasts of what is done by now, whose variances count before those of the study's file.
    """
    given, unit = study.power, f"points of {study.metrics[0]}"
    if first is not None and first.contrasts:
        measured = prior_from(one.parts for one in first.contrasts)
        factor, unit = (100, unit) if first.figure.share else (1, study.metrics[0])
        prior = Prior(factor * measured.seed_deviation, factor * measured.item_error)
        source = f"by the {len(first.seeds)} seeds that are done"
    elif given.seed_deviation is not None:
        prior, source = Prior(given.seed_deviation, given.item_error), "by power.seed_deviation of its file"
    else:
        return (
            "power: unknown until two seeds of two cells are done, or the study's file says how much the difference of "
            "two cells varies from seed to seed (power.seed_deviation)"
        )
    return f"power, {source}: {in_words(prior, len(study.seeds), given.wanted, unit, max(1, cells - 1))}"
