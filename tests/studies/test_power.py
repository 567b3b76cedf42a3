"""What a plan forecasts: from what is done, else from the study's file, else that it cannot be known."""

import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.power import Prior, forecast, prior_from
from mmlm.studies.contrasts import compare_with
from mmlm.studies.power import power_line
from mmlm.studies.record import score_arrays
from mmlm.studies.settings import Power, Study
from tests.studies.recorded import study


def settings(**power: float) -> Study:
    """A study of two cells and eight seeds."""
    cells = {"mlp": [], "pooler": []}
    return Study(
        question="Which?",
        cells=cells,
        baseline="mlp",
        seeds=list(range(8)),
        splits=["val"],
        metrics=["R@1"],
        power=Power(**power),
    )


def test_by_what_is_done():
    record, rows = study({"pooler": 0.2}, seeds=(0, 1, 2, 3))
    compared = compare_with(score_arrays(record, rows, "val", "R@1"), "mlp")
    prior = prior_from(one.parts for one in compared.contrasts)
    detectable = forecast(Prior(100 * prior.seed_deviation), 8).detectable
    line = power_line(settings(seed_deviation=50.0), 2, compared)
    assert line.startswith("power, by the 4 seeds that are done: with 8 seeds and this split you can detect")
    assert f"detect {detectable:.2g} points of R@1" in line


def test_by_the_file_and_by_nothing():
    line = power_line(settings(seed_deviation=2.0, wanted=1.0), 4, None)
    assert line.startswith("power, by power.seed_deviation of its file: with 8 seeds and this split you can detect")
    assert line.endswith("seeds would be needed for 1")
    assert "power: unknown until two seeds of two cells are done" in power_line(settings(), 2, None)


def test_impossible_settings():
    with pytest.raises(ArgumentError, match=r"seed_deviation: -1 must be at least 0"):
        Power(seed_deviation=-1)
    with pytest.raises(ArgumentError, match="wanted: 0 must be above 0"):
        Power(wanted=0)
