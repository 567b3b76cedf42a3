"""Language modelling of text-only captions: apart from captioning it is the same loss."""

import pytest
import torch

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.core.views import CAPTION
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.language_modelling import LanguageModelling
from tests.objectives.slow_text import assert_same_gradients, slow_accuracy, slow_mean

INDEX = (0, TEXT_ONLY, 1, 1, TEXT_ONLY, TEXT_ONLY, 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("text_only", [True, False], ids=["language modelling", "captioning with_image"])
def test_equals_the_formula_with_gradients(make_batch, make_output, alone, text_only, smoothing):
    batch = make_batch(INDEX, 2)
    output = make_output(batch)
    objective = LanguageModelling(smoothing) if text_only else Captioning(smoothing, captions="with_image")
    loss = alone(objective, output, batch)
    wanted = [
        (c, t, int(batch.tokens[c, t + 1]))
        for c, length in enumerate(batch.lengths.tolist())
        for t in range(length - 1)
        if (INDEX[c] == TEXT_ONLY) == text_only
    ]
    hidden, head = output.hidden[CAPTION], output.head_weight
    assert_same_gradients(loss.total, slow_mean(hidden, head, batch, wanted, smoothing), [hidden, head])
    (term,) = loss.terms.values()
    assert term.global_count.item() == len(wanted)
    assert loss.figures["accuracy"].value.item() == pytest.approx(slow_accuracy(hidden, head, batch, wanted))


def test_the_two_share_all_tokens_between_them(make_batch, make_output, alone):
    batch = make_batch(INDEX, 2)
    output = make_output(batch)
    parts = (Captioning(captions="with_image"), LanguageModelling(), Captioning())
    image, text, both = (next(iter(alone(part, output, batch).terms.values())) for part in parts)
    assert parts[0].views == parts[1].views == parts[2].views, "one pass serves all"
    torch.testing.assert_close(image.local_sum + text.local_sum, both.local_sum, rtol=1e-12, atol=1e-12)
    assert image.global_count + text.global_count == both.global_count


@pytest.mark.parametrize("index", [(0, 1), ()])
def test_without_text_only_captions_the_loss_is_zero_and_so_are_its_gradients(make_batch, make_output, alone, index):
    batch = make_batch(index, 2)
    output = make_output(batch)
    loss = alone(LanguageModelling(), output, batch)
    assert loss.total.item() == 0
    assert loss.figures["accuracy"].value.item() == 0
    gradients = torch.autograd.grad(loss.total, [output.hidden[CAPTION], output.head_weight])
    assert [int(gradient.count_nonzero()) for gradient in gradients] == [0, 0]


@pytest.mark.parametrize("smoothing", [1.0, -0.5])
def test_bad_label_smoothing_is_refused(smoothing):
    with pytest.raises(UserError, match=rf"^label_smoothing: {smoothing} must lie in \[0, 1\)$"):
        LanguageModelling(smoothing)
