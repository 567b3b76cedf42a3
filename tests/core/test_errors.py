"""Errors that survive a worker."""

import pickle

from mmlm.core.errors import CorruptImage, UserError


def test_corrupt_image_survives_a_worker_and_reads_as_one_line():
    error = CorruptImage("a.png", "is truncated")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, UserError)
    assert (again.name, again.reason, str(again)) == ("a.png", "is truncated", "a.png: is truncated")
