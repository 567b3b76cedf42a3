"""Probes on features whose right values are known, by attributes and by concept; what is chosen, and on what."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.data.scenes import Scenes
from mmlm.evaluation import probe
from mmlm.evaluation.probe import Probe, _by_neighbours, _classified

COUNT = 60


@pytest.fixture
def split(make_split):
    source = Scenes("seen", COUNT, size=16, wordings=1)
    return replace(make_split([source[n] for n in range(COUNT)], 32, languages=("en",)), source=source)


def told(split, name: str) -> torch.Tensor:
    """Features that are a label and nothing else: a direction for each value."""
    of = split.source.attributes()[name]
    values = sorted(set(of.values()))
    return torch.eye(len(values)).double()[[values.index(of[id]) for id in split.image_ids]]


def test_features_that_are_the_label_are_read_off_and_others_are_not(split, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(COUNT, 4, generator=generator).double() / 10
    features = torch.cat([told(split, "relation"), noise], dim=1)
    monkeypatch.setattr(Probe, "_features", lambda self, split: features)
    found = dict(Probe(labels=["relation", "size"], k=5)(split))
    assert found["images"] == COUNT
    assert found["linear/relation"] == found["neighbours/relation"] == 1
    assert found["linear/size"] < 0.8
    for label in ("relation", "size"):
        assert 0.5 <= found[f"chance/{label}"] < 0.75
        for kind in ("linear", "neighbours"):
            low, high = found[f"{kind}_low/{label}"], found[f"{kind}_high/{label}"]
            assert low < found[f"{kind}/{label}"] <= high + 1e-9


def test_all_attributes_of_the_data_are_labels(split):
    names = {name.partition("/")[2] for name, _ in Probe(penalties=[0.1])(split)} - {""}
    assert names == {"colour", "shape", "size", "count", "relation"}
    with pytest.raises(UserError, match="labels: 'artist' is not known of 'hand_made'; there are: colour, count"):
        list(Probe(labels=["artist"])(split))


def test_the_penalty_is_chosen_on_a_part_of_training_and_no_image_is_fitted_and_scored(split, monkeypatch):
    """Each image has a number as its feature, by which the calls of the solver are known."""
    numbers = torch.arange(COUNT)[:, None].double()
    monkeypatch.setattr(Probe, "_features", lambda self, split: numbers)
    calls: list[tuple[set[float], set[float], float]] = []

    def recorded(fitted, values, scored, penalty):
        calls.append((set(fitted[:, 0]), set(scored[:, 0]), penalty))
        return np.full(len(scored), values[0])

    monkeypatch.setattr(probe, "_classified", recorded)
    dict(Probe(labels=["colour"], penalties=[0.1, 1.0])(split))
    assert [penalty for _, _, penalty in calls] == [0.1, 1.0, 0.1] * 2
    assert all(not fitted & scored for fitted, scored, _ in calls)
    for chosen, again, last in (calls[:3], calls[3:]):
        assert chosen[:2] == again[:2]
        assert chosen[0] | chosen[1] == last[0], "the penalty is chosen on images that the probe is fitted to"
        assert len(chosen[1]) < len(chosen[0])
    assert calls[2][1] | calls[5][1] == set(range(COUNT)), "every image is scored"
    assert not calls[2][1] & calls[5][1], "and once"


def test_images_of_one_concept_are_in_one_half(make_split):
    """Three hands draw each of twelve things, of two groups: a probe may not know a thing by another hand's drawing."""
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(
            f"{hand}/{thing}",
            torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8),
            (Caption(f"thing {thing}"),),
            f"thing{thing}",
        )
        for hand in "abc"
        for thing in range(12)
    ]
    encoded = make_split(examples, 16)
    evaluator = Probe()
    keys = encoded.image_concept.tolist()
    groups = [str(int(example.concept.removeprefix("thing")) % 2) for example in examples]
    label = evaluator._label(groups, encoded.image_ids, keys)
    halves = {key: {bool(half) for k, half in zip(keys, label.second_half, strict=True) if k == key} for key in keys}
    assert all(len(of_concept) == 1 for of_concept in halves.values())
    assert set.union(*halves.values()) == {True, False}
    # Where the concept is the label, half of its images have to be known.
    found = dict(evaluator(encoded))
    assert found["images"] == 36
    assert "linear/concept" in found


def test_the_classifiers_against_plain_ones():
    generator = np.random.default_rng(0)
    values = np.array(["b", "a", "c"] * 10)
    fitted = generator.normal(size=(30, 3)) + np.eye(3)[[ord(value) - 97 for value in values]] * 2
    scored = generator.normal(size=(9, 3)) + 1
    mean, scale = fitted.mean(axis=0), fitted.std(axis=0)
    plain = LogisticRegression(C=0.5).fit((fitted - mean) / scale, values).predict((scored - mean) / scale)
    assert _classified(fitted, values, scored, 0.5).tolist() == plain.tolist()
    assert _classified(fitted, np.full(30, "a"), scored, 0.5).tolist() == ["a"] * 9
    for row, found in zip(scored, _by_neighbours(fitted, values, scored, 4), strict=True):
        similar = fitted @ row / np.linalg.norm(fitted, axis=1) / np.linalg.norm(row)
        votes = dict.fromkeys("abc", 0.0)
        for place in sorted(range(30), key=lambda n, similar=similar: -similar[n])[:4]:
            votes[values[place]] += np.exp(similar[place] / 0.07)
        assert found == max(votes, key=votes.get)


def test_without_a_label_nothing_is_scored(make_split):
    examples = [Example(str(n), torch.zeros(3, 16, 16).byte(), (Caption("a"),)) for n in range(3)]
    assert dict(Probe()(make_split(examples))) == {"images": 0}


def test_features_before_and_after_the_projection(split):
    pooled, embedding = Probe()._features(split), Probe(features="embedding")._features(split)
    assert torch.equal(embedding, split.image_embedding)
    assert torch.allclose(
        torch.nn.functional.normalize(split.model.image_projection(pooled), dim=1), embedding, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"features": "tokens"}, "features: 'tokens' must be pooled or embedding"),
        ({"k": 0}, "k: 0 must be at least 1"),
        ({"penalties": []}, "penalties: [] must be one or more numbers above 0, and finite"),
        ({"penalties": [0.0]}, "penalties: [0.0] must be one or more numbers above 0, and finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ArgumentError) as error:
        Probe(**settings)
    assert str(error.value) == told


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"needs scikit-learn .*; pip install 'mmlm\[probe\]'"):
        Probe()
