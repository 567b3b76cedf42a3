"""Image-text matching against its definition as loops: which pairs are made, the loss, and what must not matter."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.check.batch import shuffled
from mmlm.core.batch import TEXT_ONLY, Batch, Caption
from mmlm.core.errors import UserError
from mmlm.core.keyed_random import stream
from mmlm.core.model_output import ModelOutput, ModelSizes, Pairs
from mmlm.core.views import CAPTION, EMBED, StepKey
from mmlm.experiment.compatibility import check_compatible
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.matching import Matching
from mmlm.objectives.shared import negatives
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.weighted_sum import WeightedSum
from tests.exactness.cells import SUMS, make_step, whole_batch

STEP_KEY = StepKey(seed=4, step=9)
WIDTH = 5
SIZES = ModelSizes(embedding_width=5, patch_width=4, grid=(2, 2), decoder_width=WIDTH, vocab_size=11)
BATCHES = {
    "one caption an image": {"image_index": (0, 1, 2, 3), "num_images": 4},
    "several captions, out of order": {"image_index": (2, 0, 1, 2, 0, 2), "num_images": 3},
    "equal concepts": {"image_index": (0, 1, 2, 3), "num_images": 4, "image_concept": (5, 6, 5, 5)},
    "equal texts": {"image_index": (0, 1, 2, 3, 3), "num_images": 4, "caption_key": (7, 8, 7, 9, 8)},
    "text-only captions, images without": {"image_index": (TEXT_ONLY, 0, 3, TEXT_ONLY, 4, 4), "num_images": 6},
    "a single image": {"image_index": (0, 0), "num_images": 1},
    "all of one concept": {"image_index": (0, 1, 2), "num_images": 3, "image_concept": (5, 5, 5)},
    "one image without a negative": {
        "image_index": (0, 0, 1, 2),
        "num_images": 3,
        "caption_key": (7, 8, 7, 8),
    },
    "no captions": {"image_index": (), "num_images": 3},
    "only text": {"image_index": (TEXT_ONLY, TEXT_ONLY), "num_images": 0},
    "no images have captions": {"image_index": (TEXT_ONLY, TEXT_ONLY), "num_images": 2},
}
RULES = {"sampled": ("sampled", 0.3), "hardest": ("hardest", None)}

Pair = tuple[str, tuple[int, ...], bool]
"""Image id, tokens without padding, and whether they belong together."""


def make_objective(rule: str = "sampled") -> Matching:
    torch.manual_seed(0)
    objective = Matching(*RULES[rule])
    objective.connect(SIZES)
    return objective.double()


def make_embeddings(batch: Batch) -> tuple[Tensor, Tensor]:
    """float64[B, 6] and [C, 6], unit length."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(len(batch.images) + len(batch.tokens), 6, generator=generator, dtype=torch.float64)
    image, text = F.normalize(both).split([len(batch.images), len(batch.tokens)])
    return image, text


def described(pairs: Sequence[Pairs], batches: Sequence[Batch]) -> Counter[Pair]:
    """The pairs of all micro-batches, however they are ordered."""
    found: Counter[Pair] = Counter()
    for some, batch in zip(pairs, batches, strict=True):
        rows = zip(some.image_index.tolist(), some.tokens, some.lengths.tolist(), some.matched.tolist(), strict=True)
        found.update((batch.ids[i], tuple(tokens[:n].tolist()), matched) for i, tokens, n, matched in rows)
    return found


def are_positives(batch: Batch, image: int, caption: int) -> bool:
    own = (batch.image_index == image).nonzero().squeeze(1).tolist()
    same_concept = batch.image_concept[image] == batch.caption_concept[caption]
    return bool(same_concept or any(batch.caption_key[c] == batch.caption_key[caption] for c in own))


def plain_choice(similarity: dict[int, float], key: Tensor, number: float, rule: str) -> int:
    """One of the candidates: the most similar, or where ``number`` of [0, 1) falls among them, sorted by their keys."""
    if rule == "hardest":
        return max(similarity, key=similarity.__getitem__)
    weights = {k: math.exp(similarity[k] / RULES["sampled"][1]) for k in sorted(similarity, key=lambda k: int(key[k]))}
    passed = 0.0
    for k, weight in weights.items():
        passed += weight / sum(weights.values())
        if passed > number:
            return k
    raise AssertionError


def plain_pairs(image: Tensor, text: Tensor, batch: Batch, rule: str) -> Counter[Pair]:
    """The class's docstring, one image and one caption at a time."""
    index = batch.image_index.tolist()
    captions = [c for c, i in enumerate(index) if i != TEXT_ONLY]
    images = sorted({index[c] for c in captions})
    similarity = (image @ text.T).tolist()
    chosen = [(index[c], c, True) for c in captions]
    by_image = STEP_KEY.uniform(batch.image_key, 1, stream("mmlm.objectives.shared.negatives.texts"))[:, 0].tolist()
    by_text = STEP_KEY.uniform(batch.caption_image_key, 1, stream("mmlm.objectives.shared.negatives.images"))[
        :, 0
    ].tolist()
    for b in images:
        scores = {c: similarity[b][c] for c in captions if not are_positives(batch, b, c)}
        if scores:
            chosen.append((b, plain_choice(scores, batch.caption_image_key, by_image[b], rule), False))
    for c in captions:
        scores = {b: similarity[b][c] for b in images if not are_positives(batch, b, c)}
        if scores:
            chosen.append((plain_choice(scores, batch.image_key, by_text[c], rule), c, False))
    return Counter((batch.ids[b], tuple(batch.tokens[c, : batch.lengths[c]].tolist()), m) for b, c, m in chosen)


def chosen_of(objective: Matching, output: ModelOutput, batch: Batch, step_key: StepKey = STEP_KEY) -> Pairs:
    return objective.pairs(output.image_embedding, output.text_embedding, (batch,), step_key)[0]


# Choice


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", BATCHES)
def test_the_pairs_are_those_of_the_definition(make_batch, make_output, kind, rule):
    batch = make_batch(**BATCHES[kind])
    output = make_output(batch)
    pairs = chosen_of(make_objective(rule), output, batch)
    expected = plain_pairs(output.image_embedding, output.text_embedding, batch, rule)
    assert described([pairs], [batch]) == expected
    assert pairs.global_count == expected.total() == len(pairs.tokens)
    assert int(pairs.lengths.max()) == pairs.tokens.shape[1] if expected else pairs.tokens.shape == (0, 7)


def test_what_has_no_negative_gets_none(make_batch, make_output):
    """Each of the first image's two texts is another image's too; that image's own texts have one negative each."""
    batch = make_batch(**BATCHES["one image without a negative"])
    pairs = chosen_of(make_objective(), make_output(batch), batch)
    assert pairs.image_index[~pairs.matched].tolist().count(0) == 0
    assert (int(pairs.matched.sum()), len(pairs.matched)) == (4, 4 + 2 + 4)
    alone = make_batch(**BATCHES["a single image"])
    assert chosen_of(make_objective(), make_output(alone), alone).matched.tolist() == [True, True]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(20))
def test_a_positive_is_never_chosen(make_batch, make_output, rule, seed):
    """Batches full of equal concepts and texts."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(-1, 6, (10,), generator=generator).tolist()
    concepts = torch.randint(0, 4, (6,), generator=generator).tolist()
    keys = torch.randint(0, 6, (10,), generator=generator).tolist()
    batch = make_batch(index, 6, concepts, caption_key=keys)
    batch = replace(batch, tokens=torch.arange(10)[:, None].expand(10, 7), lengths=torch.full((10,), 7))
    pairs = chosen_of(make_objective(rule), make_output(batch, seed=seed), batch)
    chosen = torch.stack([pairs.image_index, pairs.tokens[:, 0], pairs.matched], dim=1).tolist()
    assert sum(matched for _, _, matched in chosen) == sum(i != TEXT_ONLY for i in index)
    for b, c, matched in chosen:
        assert index[c] != TEXT_ONLY
        assert matched == (index[c] == b)
        assert matched or not are_positives(batch, b, c)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("examples", [1, 2, 3])
def test_order_and_micro_batches_change_no_choice(rule, examples):
    """Nor does what padding the micro-batches have."""
    objective, whole = make_objective(rule), whole_batch()
    whole = replace(whole, captions=tuple(Caption(str(c)) for c in range(len(whole.captions))))
    image, text = make_embeddings(whole)

    def choice(*batches: Batch) -> Counter[Pair]:
        images = [whole.ids.index(name) for batch in batches for name in batch.ids]
        captions = [int(caption.text) for batch in batches for caption in batch.captions]
        pairs = objective.pairs(image[images], text[captions], batches, STEP_KEY)
        assert {int(some.global_count) for some in pairs} == {sum(len(some.tokens) for some in pairs)}
        return described(pairs, batches)

    assert choice(*whole.split(examples)) == choice(whole)
    assert choice(shuffled(whole)) == choice(whole)


@pytest.mark.parametrize("rule", RULES)
def test_tiles_change_no_choice(monkeypatch, rule):
    objective, whole = make_objective(rule), whole_batch()
    image, text = make_embeddings(whole)
    expected = described(objective.pairs(image, text, (whole,), STEP_KEY), (whole,))
    for size, rows in ((1, 1024), (40, 1024), (1 << 22, 3)):
        monkeypatch.setattr(negatives, "_TILE_SIZE", size)
        monkeypatch.setattr(negatives, "_TILE_ROWS", rows)
        assert described(objective.pairs(image, text, (whole,), STEP_KEY), (whole,)) == expected


def test_choices_are_as_frequent_as_the_softmax_says():
    """1,000 equal queries of 40 steps, each of which draws its own number; 0.01 is four standard deviations."""
    image, text = F.normalize(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    numbers = torch.arange(1000)
    everyone = negatives.Embedded(image, text, Keys(*[numbers[:5]] * 4), 7 * numbers[:5], 5 - numbers[:5])
    keys = Keys(torch.full((1000,), 9), torch.full((1000,), 9), 5000 + numbers, numbers)
    own = negatives.Embedded(image[:1].expand(1000, 6), text[:1].expand(1000, 6), keys, numbers, numbers)
    chooser, moments = negatives.HardNegatives("sampled", 0.5), [StepKey(seed=1, step=step) for step in range(40)]
    for choose, scores in ((chooser.texts, image[0] @ text.T), (chooser.images, image @ text[0])):
        chosen = torch.cat([choose(own, everyone, step_key) for step_key in moments])
        shares = chosen.bincount(minlength=5) / len(chosen)
        torch.testing.assert_close(shares, (scores / 0.5).softmax(dim=0), rtol=0, atol=0.01)


def test_another_step_chooses_anew_and_hardest_does_not(make_batch, make_output):
    batch = make_batch(range(30), 30)
    output = make_output(batch)
    for rule, same in (("sampled", False), ("hardest", True)):
        one, other = (chosen_of(make_objective(rule), output, batch, StepKey(0, step)) for step in (0, 1))
        assert (described([one], [batch]) == described([other], [batch])) is same


def test_no_gradient_goes_through_the_choice(make_batch, make_output):
    batch = make_batch((0, 1, 2), 3)
    output = make_output(batch)
    pairs = chosen_of(make_objective(), output, batch)
    assert not any(part.requires_grad for part in (pairs.tokens, pairs.image_index, pairs.global_count))
    with torch.autocast("cpu", torch.bfloat16):
        assert described([chosen_of(make_objective(), output, batch)], [batch]) == described([pairs], [batch])


# Loss


@pytest.mark.parametrize("kind", BATCHES)
def test_loss_figures_and_gradients_are_those_of_the_formula(make_batch, make_output, kind):
    batch, objective = make_batch(**BATCHES[kind]), make_objective()
    output = make_output(batch)
    pairs = chosen_of(objective, output, batch)
    fused = torch.randn(len(pairs.tokens), WIDTH, dtype=torch.float64, requires_grad=True)
    counts = {name: count.double().clamp(min=1) for name, count in objective.counts(batch, STEP_KEY).items()}
    loss = objective(replace(output, pairs=pairs, fused=fused), batch, STEP_KEY, counts)
    weight, bias = objective.head.weight[0], objective.head.bias[0]
    logits = [(weight * state).sum() + bias for state in fused]
    each = [(1 + (-z if m else z).exp()).log() for z, m in zip(logits, pairs.matched.tolist(), strict=True)]
    expected = (sum(each) if each else fused.sum() + 0 * (weight.sum() + bias)) / max(1, len(each))
    torch.testing.assert_close(loss.total, expected)
    inputs = [fused, objective.head.weight, objective.head.bias]
    for one, other in zip(torch.autograd.grad(loss.total, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)
    for name, matched in (("accuracy_matched", True), ("accuracy_unmatched", False)):
        right = [(z > 0) == matched for z, m in zip(logits, pairs.matched.tolist(), strict=True) if m is matched]
        assert loss.figures[name].value == pytest.approx(sum(right) / len(right) if right else 0.0)


def test_half_precision_is_not_that_of_the_loss(make_batch, make_output):
    batch, objective = make_batch((0, 1, 2), 3), make_objective().float()
    output = make_output(batch)
    pairs = chosen_of(objective, output, batch)
    output = replace(output, pairs=pairs, fused=torch.randn(len(pairs.tokens), WIDTH))
    with torch.autocast("cpu", torch.bfloat16):
        assert objective(output, batch, STEP_KEY, {"matched": torch.tensor(3.0)}).total.dtype == torch.float32


# In the step


def test_an_evaluation_without_gradients_is_the_loss_of_training():
    step = make_step(SUMS["coca with matching"])
    trained = step(whole_batch(), STEP_KEY)
    with torch.no_grad():
        evaluated = step.eval()(whole_batch(), STEP_KEY)
    assert not evaluated.total.requires_grad
    torch.testing.assert_close(evaluated.total, trained.total.detach())
    assert evaluated.figures.keys() == trained.figures.keys()


def test_the_pairs_of_the_step_are_fused_by_the_model():
    """The whole way once more, outside of the step."""
    step, batch = make_step(SUMS["matching"]), whole_batch()
    output = step.model(batch, {EMBED})
    pairs = chosen_of(step.objective.objectives["matching"], output, batch)
    head = step.objective.objectives["matching"].head
    logits = []
    for index, tokens, length in zip(pairs.image_index, pairs.tokens, pairs.lengths.tolist(), strict=True):
        one = replace(pairs, image_index=index[None], tokens=tokens[None, :length], lengths=torch.tensor([length]))
        logits.append(head(step.model.fuse(output, one)))
    expected = F.binary_cross_entropy_with_logits(torch.cat(logits).squeeze(1), pairs.matched.double())
    torch.testing.assert_close(step(batch, STEP_KEY).terms["matching"].value, expected)


def test_a_batch_without_captions_has_a_loss_of_0_and_reaches_everything():
    step, whole = make_step(SUMS["coca with matching"]), whole_batch()
    empty = whole._part(range(8), torch.zeros(13, dtype=torch.bool))
    loss = step(empty, STEP_KEY)
    assert loss.total == 0
    loss.total.backward()
    assert step.unreached(STEP_KEY.step) == ()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in step.parameters())


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("sampled", None), r"^temperature: None must be above 0 to sample negatives, such as 0\.07$"),
        (("sampled", 0.0), r"^temperature: 0\.0 must be above 0"),
        (("sampled", -1.0), r"^temperature: -1\.0 must be above 0"),
        (("sampled", math.nan), r"^temperature: nan must be above 0"),
        (("sampled", math.inf), r"^temperature: inf must be above 0"),
        (("hardest", 0.07), r"^temperature: 0\.07 does nothing with negatives=hardest; set it to null$"),
    ],
)
def test_settings_that_do_nothing_or_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Matching(*settings)


def test_the_head_is_made_for_the_decoder_and_needs_one():
    objective = Matching()
    with torch.device("meta"):
        objective.connect(SIZES)
    assert {name: tuple(p.shape) for name, p in objective.named_parameters()} == {
        "head.weight": (1, WIDTH),
        "head.bias": (1,),
    }
    with pytest.raises(UserError, match="matching needs a decoder"):
        Matching().connect(replace(SIZES, decoder_width=None, vocab_size=None))


def test_a_model_without_a_decoder_is_refused_when_it_is_composed(tiny_config, two_towers):
    matching = "objective.objectives.matching"
    check_compatible(
        tiny_config("objective=coca_matching", f"{matching}.negatives=hardest", f"{matching}.temperature=null")
    )
    message = r"^objective\.objectives\.matching: it needs a decoder, and there is none; choose one, or set objective\."
    with pytest.raises(UserError, match=message):
        check_compatible(tiny_config("objective=coca_matching", *two_towers))


def test_a_sum_knows_how_many_pairs_it_fuses_and_takes_one_matching():
    parts = {"contrastive": InfoNCE(), "captioning": Captioning(), "matching": Matching()}
    both = WeightedSum(parts, dict.fromkeys(parts, 1.0))
    assert (both.pairs_per_image, both.views) == (3, {EMBED, CAPTION})
    assert WeightedSum(parts, dict.fromkeys(parts, 1.0) | {"matching": 0.0}).pairs_per_image == 0
    with pytest.raises(UserError, match=r"^objectives: a and b both choose pairs"):
        WeightedSum({"a": Matching(), "b": Matching()}, {"a": 1.0, "b": 1.0})
