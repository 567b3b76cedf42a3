"""Made-up studies have the means that they are said to have, and recorded ones are drawn whole."""

import numpy as np
import pytest

from mmlm.core.errors import ArgumentError
from mmlm.statistics.simulation import MadeUpStudies, RecordedStudies


def test_the_true_means_are_those_that_were_asked_for():
    random = np.random.default_rng(0)
    studies = MadeUpStudies(recipe=0.3).with_gain(0.08)
    means = np.mean([[cell.mean() for cell in studies.draw(4, 3, random).cells] for _ in range(300)], axis=0)
    assert means == pytest.approx([0.55, 0.63, 0.55], abs=0.008)
    assert studies.effects == (0.08,)


def test_cells_of_one_seed_have_something_in_common():
    study = MadeUpStudies(shared_seed=0.3, own_seed=0.02).draw(200, 2, np.random.default_rng(1))
    first, second = (cell.mean(axis=1) for cell in study.cells)
    assert np.corrcoef(first, second)[0, 1] > 0.8


def test_recorded_runs_are_drawn_whole_with_whole_clusters():
    runs, cluster = np.arange(4)[:, None] * 100.0 + np.arange(6), np.array([3, 3, 5, 5, 5, 9])
    study = RecordedStudies(runs, cluster).draw(7, 2, np.random.default_rng(0))
    assert study.cells[0].shape == (7, len(study.cluster))
    for cell in study.cells:
        assert (np.ptp(cell // 100, axis=1) == 0).all()
    for one in range(3):
        assert set(study.cells[0][0, study.cluster == one] % 100) in ({0.0, 1.0}, {2.0, 3.0, 4.0}, {5.0})


def test_one_run_is_no_recording_of_seeds():
    with pytest.raises(ArgumentError, match="runs: 1 must be at least 2"):
        RecordedStudies(np.zeros((1, 3)), np.arange(3))
