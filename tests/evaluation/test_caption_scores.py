"""Caption metrics against pycocoevalcap's Python scorers, and what they do at the edges."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mmlm.core.errors import UserError
from mmlm.evaluation.caption_metrics import MetricScores, bleu, cider_d, rouge_l
from mmlm.evaluation.caption_scores import exact_match, score_captions

CANDIDATES = ["a red cat on the mat", "two dogs play in the park", "grinning face with big eyes"]
REFERENCES = [
    ["a red cat sits on the mat", "the red cat is on a mat"],
    ["two dogs run in the park", "a pair of dogs running in a park"],
    ["grinning face with big eyes", "a smiling face with large eyes"],
]


def split(candidates, references):
    return [c.split() for c in candidates], [[r.split() for r in refs] for refs in references]


def random_corpus(seed, examples, vocabulary, longest, shortest=1):
    """Captions over few words, so that n-grams repeat; half of the candidates are edits of a reference."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(vocabulary)]

    def caption():
        return rng.choices(words, k=rng.randint(shortest, longest))

    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(examples)]
    candidates = []
    for refs in references:
        candidate = list(rng.choice(refs)) if rng.random() < 0.5 else caption()
        if rng.random() < 0.5:
            candidate[rng.randrange(len(candidate))] = rng.choice(words)
        candidates.append(candidate)
    return candidates, references


def coco(scorer, candidates, references, **settings):
    """The reference's (corpus, per-example) scores of tokenised captions."""
    given = {i: [" ".join(words) for words in refs] for i, refs in enumerate(references)}
    results = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    return scorer.compute_score(given, results, **settings)


def assert_equal_to_reference(candidates, references):
    corpus, per_example = coco(Bleu(4), candidates, references, verbose=0)
    for order, scores in enumerate(bleu(candidates, references)):
        assert scores.corpus == pytest.approx(corpus[order], abs=1e-9)
        np.testing.assert_allclose(scores.per_example, per_example[order], rtol=0, atol=1e-9)
    for ours, scorer in ((rouge_l, Rouge()), (cider_d, Cider())):
        corpus, per_example = coco(scorer, candidates, references)
        scores = ours(candidates, references)
        assert scores.corpus == pytest.approx(corpus, abs=1e-9)
        np.testing.assert_allclose(scores.per_example, per_example, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_random_corpora_score_as_the_reference_does(seed):
    shape = random.Random(seed)
    corpus = random_corpus(
        seed, shape.randint(2, 60), vocabulary=shape.choice([2, 5, 30]), longest=shape.choice([3, 14])
    )
    assert_equal_to_reference(*corpus)


def test_long_captions_and_large_length_differences_score_as_the_reference_does():
    candidates, references = random_corpus(seed=7, examples=10, vocabulary=4, longest=40, shortest=30)
    assert_equal_to_reference([words[:3] for words in candidates[:5]] + candidates[5:], references)
    assert_equal_to_reference(candidates, [[words[:3] for words in refs] for refs in references])


def test_empty_candidates_score_as_the_reference_does():
    candidates, references = random_corpus(seed=3, examples=8, vocabulary=6, longest=8)
    assert_equal_to_reference([[], *candidates[1:7], []], references)
    assert_equal_to_reference([[] for _ in references], references)


def test_a_single_example_scores_as_the_reference_does():
    candidates, references = split(CANDIDATES[:1], REFERENCES[:1])
    assert_equal_to_reference(candidates, references)
    # Every n-gram is in every example, so none is informative.
    assert cider_d(references[0][:1], references).corpus == 0.0


def test_the_closest_reference_length_is_the_shorter_of_two_as_close():
    candidates, references = [["a", "b", "c", "d"]], [[list("abcdef"), list("ab")]]
    assert_equal_to_reference(candidates, references)
    assert bleu(candidates, references)[0].corpus == pytest.approx(1.0)  # 4 words against 2: no brevity penalty


def test_published_values_of_a_small_corpus():
    scores = score_captions(CANDIDATES, REFERENCES)
    expected = {
        "exact": 1 / 3,
        "BLEU-1": 0.88741,
        "BLEU-2": 0.81081,
        "BLEU-3": 0.69666,
        "BLEU-4": 0.53133,
        "ROUGE-L": 0.91459,
        "CIDEr-D": 4.20421,
    }
    assert dict(scores.items()) == pytest.approx(expected, abs=5e-6)
    assert list(dict(scores.items())) == list(expected)
    assert scores.exact.per_example == (0.0, 0.0, 1.0)


def test_perfect_captions_get_the_highest_scores():
    captions = ["a red cat sits on the mat", "two dogs run in green parks"]
    scores = dict(score_captions(captions, [[caption] for caption in captions]).items())
    assert scores == pytest.approx(
        {"exact": 1, "BLEU-1": 1, "BLEU-2": 1, "BLEU-3": 1, "BLEU-4": 1, "ROUGE-L": 1, "CIDEr-D": 10}, abs=1e-7
    )


def test_a_perfect_caption_of_two_words_gets_half_of_cider():
    scores = cider_d(*split(["red heart", "blue car"], [["red heart"], ["blue car"]]))
    assert scores.per_example == pytest.approx((5.0, 5.0))


def test_scores_do_not_depend_on_the_order_of_examples_or_references():
    candidates, references = random_corpus(seed=5, examples=20, vocabulary=6, longest=9)
    order = random.Random(1).sample(range(20), 20)
    moved = ([candidates[i] for i in order], [references[i][::-1] for i in order])
    for metric in (rouge_l, cider_d, lambda c, r: bleu(c, r)[3]):
        before, after = metric(candidates, references), metric(*moved)
        assert after.corpus == pytest.approx(before.corpus, abs=1e-12)
        assert after.per_example == pytest.approx([before.per_example[i] for i in order], abs=1e-12)


def test_references_without_words_do_not_stop_the_scoring():
    scores = score_captions(["a cat", "", "!"], [["?"], ["..."], ["a dog", "-"]])
    assert all(np.isfinite(value) for _, value in scores.items())
    assert scores.rouge_l.per_example == (0.0, 0.0, 0.0)
    assert scores.cider_d.corpus == 0.0


def test_exact_match_ignores_case_and_spacing_but_not_punctuation():
    candidates = ["Red  Heart", "red heart", "ｒｅｄ heart ", "red heart!", "red", "woman's hat"]
    references = [["blue", "red heart"], ["Red Heart"], ["red heart"], ["red heart"], ["red heart"], ["woman’s hat"]]
    assert exact_match(candidates, references) == MetricScores(4 / 6, (1.0, 1.0, 1.0, 0.0, 0.0, 1.0))


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="example 1 has no reference caption"):
        score_captions(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="2 candidates for 1 lists of references"):
        score_captions(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="0 captions to score"):
        score_captions([], [])
    with pytest.raises(TypeError, match=r"references\[0\] is the string 'a cat'"):
        score_captions(["a cat"], ["a cat"])
    for metric in (bleu, rouge_l, cider_d):
        with pytest.raises(ValueError, match="0 captions to score"):
            metric([], [])


def test_raw_captions_score_as_the_whole_reference_does():
    """Its Java tokenizer included: punctuation, capitals, hyphens, possessives, several references, empty captions."""
    reference = json.loads(Path(__file__).with_name("coco_scores.json").read_text(encoding="utf-8"))
    rows = reference["examples"]
    found = score_captions([row["said"] for row in rows], [row["true"] for row in rows])
    assert {name: value for name, value in found.items() if name != "exact"} == pytest.approx(
        reference["corpus"], abs=1e-9
    )
    for order, scores in enumerate(found.bleu):
        assert scores.per_example == pytest.approx([row["BLEU"][order] for row in rows], abs=1e-9)
    assert found.rouge_l.per_example == pytest.approx([row["ROUGE-L"] for row in rows], abs=1e-9)
    assert found.cider_d.per_example == pytest.approx([row["CIDEr-D"] for row in rows], abs=1e-9)
    assert any(row["said"] == "" for row in rows)
    assert max(len(row["true"]) for row in rows) > 2
