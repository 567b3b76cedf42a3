"""One cell that is trained and judged: the criteria, the unigrams' entropy, and where its numbers come from."""

import dataclasses
import math

import pytest
import torch

from mmlm.bench import learning
from mmlm.bench.learning import Captioned, Drawn, Learned, train_cell, unigram_entropy
from mmlm.core.views import StepKey
from mmlm.experiment.build import build_source
from mmlm.experiment.experiment import build_experiment, build_tokenizer
from mmlm.training.loop import Interrupted
from mmlm.training.messages import NonFiniteLoss

GOOD = Learned(Captioned(2.0, 2.5, 0.4, 0.1, 0.7), math.log(8) / 2 - 0.01, 8, 1.0, "CPU")


def test_a_cell_that_meets_every_criterion_just_so():
    assert GOOD.missed() == []


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"captioned": Captioned(2.01, 2.5, 0.4, 0.1, 0.7)}, ["held-out loss"]),
        ({"captioned": Captioned(2.0, 2.5, 0.4, 0.0, 0.8)}, ["image-use gap"]),
        ({"contrastive": math.log(8) / 2}, ["contrastive loss"]),
        ({"captioned": Captioned(math.nan, 2.5, 0.4, math.nan, 0.7)}, ["held-out loss", "image-use gap"]),
        ({"contrastive": math.nan}, ["contrastive loss"]),
        ({"captioned": None}, []),
        ({"contrastive": None}, []),
        ({"captioned": None, "contrastive": None, "failure": "step 3: not finite"}, ["step 3: not finite"]),
    ],
)
def test_criteria(change, missed):
    assert dataclasses.replace(GOOD, **change).missed() == missed


def test_unigram_entropy_is_that_of_the_targets(tiny_config, tmp_path):
    """Against the loss of constant logits, the log frequencies, on all targets of the data set."""
    config = tiny_config()
    source = build_source(config, config.data.train, "data.train")
    tokenizer = build_tokenizer(config, tmp_path, source)
    encoded = [tokenizer.encode(caption.text, caption.language, 6) for caption in source.captions()]
    assert {ids[0] for ids in encoded} == {tokenizer.start_id(None)}
    targets = torch.tensor([token for ids in encoded for token in ids[1:]])
    assert (targets == tokenizer.end_id).sum() == len(source), "the end token is predicted, the start token is not"
    logits = torch.bincount(targets, minlength=tokenizer.vocab_size).double().log()
    wanted = torch.nn.functional.cross_entropy(logits.expand(len(targets), -1), targets)
    assert unigram_entropy(tokenizer, source, 6) == pytest.approx(wanted.item())


def test_drawn_examples_are_distinct_and_always_the_same(tiny_config):
    config = tiny_config()
    source = build_source(config, config.data.train, "data.train")
    drawn = Drawn(source, 5)
    ids = [drawn[index].id for index in range(len(drawn))]
    assert len(set(ids)) == 5
    assert ids == [Drawn(source, 5)[index].id for index in range(5)]
    assert ids == [source[index].id for index in range(len(source)) if source[index].id in ids], "in their order"
    assert list(drawn.captions()) == [caption for index in range(5) for caption in drawn[index].captions]


def test_a_cell_is_trained_as_by_mmlm_train(tiny_config, tmp_path, monkeypatch):
    """The contrastive loss is the mean of the last steps; the held-out loss is that of the trained model."""
    monkeypatch.setattr(learning, "LAST_STEPS", 2)
    config = tiny_config()
    learned = train_cell(config, "validation", None)
    assert (learned.batch_size, learned.device[:3], learned.failure) == (4, "CPU", None)
    assert learned.captioned.gap_low <= learned.captioned.gap <= learned.captioned.gap_high
    assert not (tmp_path / "runs").exists()

    experiment = build_experiment(config, tmp_path)
    state, losses = experiment.state, []
    for step, batch in zip(range(config.train.steps), state.loader, strict=False):
        for group in state.optimizer.param_groups:
            group["lr"] = 0.002 * experiment.schedule(step, config.train.steps)
        loss = state.train_step(batch, StepKey())
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(state.train_step.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
        losses.append(loss.terms["contrastive"].value.item())
    assert learned.contrastive == pytest.approx(sum(losses[1:]) / 2, rel=1e-4)

    state.train_step.eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in experiment.validation["validation"]:
            term = state.train_step(batch, StepKey()).terms["captioning"]
            total, count = total + term.local_sum.item(), count + term.global_count.item()
    assert learned.captioned.loss == pytest.approx(total / count, rel=1e-3)


def test_two_towers_are_judged_by_their_contrastive_loss(tiny_config, two_towers):
    learned = train_cell(tiny_config(*two_towers), "validation", None)
    assert learned.captioned is None
    assert learned.contrastive > 0


def test_a_captioner_is_judged_by_its_captions(tiny_config):
    learned = train_cell(tiny_config("objective.weights.contrastive=0"), "validation", 6)
    assert learned.contrastive is None
    assert learned.captioned.loss > 0


def test_a_loss_that_is_not_finite_is_a_failure(tiny_config, monkeypatch):
    def broken(*arguments):
        raise NonFiniteLoss("step 1: the loss is not finite")

    monkeypatch.setattr(learning, "fit", broken)
    assert train_cell(tiny_config(), "validation", None).missed() == ["step 1: the loss is not finite"]


def test_weights_that_are_not_finite_at_the_end_are_a_failure(tiny_config, monkeypatch):
    monkeypatch.setattr(learning.Evaluation, "all_scores", lambda self, splits: {"loss": math.nan})
    assert train_cell(tiny_config(), "validation", None).missed() == ["step 3: the held-out loss is not finite"]


def test_an_interruption_goes_through(tiny_config, monkeypatch):
    def stopped(*arguments):
        raise Interrupted(2, "SIGINT")

    monkeypatch.setattr(learning, "fit", stopped)
    with pytest.raises(Interrupted):
        train_cell(tiny_config(), "validation", None)
