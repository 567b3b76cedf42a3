"""Too many unreadable examples end a run, once its state is saved, and fewer do not."""

import pytest

from mmlm.data.unreadable import BadLimits
from mmlm.training.messages import TooManyUnreadable
from tests.toy_run import ToyLoader, make_run, restore

BAD = {1: (2,), 2: (4,), 4: (8, 9)}
"""The bad positions in each batch of two."""


def loader() -> ToyLoader:
    return ToyLoader(corrupt={n: tuple(f"{p}.png: is damaged" for p in at) for n, at in BAD.items()}, corrupt_at=BAD)


@pytest.mark.parametrize("log_every", [1, 20])
def test_the_run_ends_once_its_state_is_saved(log_every):
    run = make_run(loader())
    with pytest.raises(TooManyUnreadable, match=r"^2 of the first 5 examples of epoch 0 cannot be read") as error:
        run.go(steps=12, log_every=log_every, bad_limits=BadLimits(0.2, None, 6))
    assert "2 is damaged; first: 2.png: is damaged; 4.png: is damaged; the state is saved" in str(error.value)
    saved = run.recorder.states[max(run.recorder.states)]
    assert (saved["step"], saved["bad"]["bad"]) == (3, 2)
    assert "epoch 0: 2 images could not be decoded" in run.console.getvalue()


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_the_count_goes_on_after_an_interruption(stop):
    run = make_run(loader()).go(steps=stop, bad_limits=BadLimits(None, 2, 1000))
    again = make_run(loader())
    restore(again.state, run.recorder.states[stop])
    with pytest.raises(TooManyUnreadable, match=r"^2 examples in a row cannot be read"):
        again.go(steps=12, bad_limits=BadLimits(None, 2, 1000))
    again = make_run(loader())
    restore(again.state, run.recorder.states[stop])
    with pytest.raises(TooManyUnreadable, match=r"^4 of the first 10 examples of epoch 0"):
        again.go(steps=12, bad_limits=BadLimits(0.3, None, 10))


def test_within_its_limits_a_run_goes_on():
    run = make_run(loader()).go(steps=12, bad_limits=BadLimits(0.5, 3, 6))
    assert run.state.step == 12
    assert "epoch 0: 2 images could not be decoded: 2.png: is damaged; 4.png: is damaged" in run.console.getvalue()
