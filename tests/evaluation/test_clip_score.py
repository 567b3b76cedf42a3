"""CLIPScore and RefCLIPScore against their formulas, caption by caption, for the model itself and for open_clip."""

import hashlib
import math

import open_clip
import open_clip.factory
import pytest
import torch
from PIL import Image

from mmlm.check.ranks import Ranks
from mmlm.core.batch import Caption, Example
from mmlm.core.errors import ArgumentError, UserError
from mmlm.evaluation.clip_score import ClipScore, cosines, harmonic_mean
from mmlm.evaluation.clip_scorers import PIXELS, OpenClip
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.image_use import shuffled_images
from mmlm.evaluation.split import encode_split
from mmlm.evaluation.written_captions import generate_captions
from mmlm.experiment.parts import build_part
from tests.evaluation.hand_made import MOST_TOKENS, ExampleList, evaluation_batches, fitted_tokenizer, small_model

TEXTS = [("a cat",), ("a dog in the rain", "a wet dog"), (), ("two birds", "birds", "a bird")]
SHORT = GenerationSettings(max_tokens=6)
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 24, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""A model of open_clip. CLIP's tokenizer comes with the package."""


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(TEXTS), 3, 16, 16), generator=generator, dtype=torch.uint8)
    found = [
        Example(f"image{row}", image, tuple(map(Caption, own)), f"concept{row}")
        for row, (image, own) in enumerate(zip(images, TEXTS, strict=True))
    ]
    return [*found[:2], Example("text", None, (Caption("alone"),), "concept0"), *found[2:]]


def cosine(a, b) -> float:
    a, b = a.double().tolist(), b.double().tolist()
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def by_formula(image, caption, references) -> tuple[float, float]:
    own = 2.5 * max(cosine(image, caption), 0)
    nearest = max(max(cosine(caption, one), 0) for one in references)
    return own, 2 / (1 / own + 1 / nearest) if own and nearest else 0.0


def assert_scores(evaluator, split, embed_image, embed_text) -> None:
    """``embed_image(row)`` and ``embed_text(text)`` embed one thing at a time."""
    rows = [row for row, texts in enumerate(split.references) if texts]
    said = [generate_captions(split, None, SHORT)[row] for row in rows]
    true = [[text.text for text in split.references[row]] for row in rows]
    dealt = shuffled_images(split.image_concept[rows], 0).tolist()
    expected, chance = [], []
    for place, row in enumerate(rows):
        image, references = embed_image(row), [embed_text(text) for text in true[place]]
        expected.append(by_formula(image, embed_text(said[place]), references))
        chance.append(by_formula(image, embed_text(said[dealt[place]]), references))
    values = dict(evaluator(split))
    items = {one.figure: one for one in evaluator.per_item(split)}
    assert values["scored"] == len(rows) == 3
    for number, name in enumerate(("CLIPScore", "RefCLIPScore")):
        of_name = [scores[number] for scores in expected]
        assert values[name] == pytest.approx(sum(of_name) / 3, abs=1e-5)
        assert values[f"{name}/chance"] == pytest.approx(sum(one[number] for one in chance) / 3, abs=1e-5)
        assert values[f"{name}/low"] <= values[name] <= values[f"{name}/high"]
        assert items[name].values.tolist() == pytest.approx(of_name, abs=1e-5)
        assert (list(items[name].outputs), items[name].items) == (said, [split.image_ids[row] for row in rows])
    declared = {*evaluator.figures, *(name for one in evaluator.figures.values() for name in one.helpers())}
    assert values.keys() == declared
    # A model of random weights has similarities of both signs: the test sees what the formula does with both.
    assert any(one[0] > 0 for one in [*expected, *chance])


@pytest.mark.parametrize("prefix", ["", "a photo of "])
def test_the_model_scores_its_own_captions(make_split, prefix):
    split = make_split(examples())
    assert_scores(
        ClipScore(decoding=SHORT, prefix=prefix),
        split,
        lambda row: split.image_embedding[row],
        lambda text: split.embed_texts([prefix + text])[0],
    )


def test_the_formulas_at_their_ends():
    a = torch.tensor([[1.0, 0], [1, 0], [3, 0]])
    assert cosines(a, torch.tensor([[2.0, 0], [-1, 0], [0, 5]])).tolist() == [1, -1, 0]
    zero, some = torch.tensor([0.0, 0.0, 2.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    assert harmonic_mean(zero, some).tolist() == pytest.approx([0, 0, 2 * 2.5 * 0.5 / 3])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The name and the weights of a tiny model of open_clip, and the model."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    torch.manual_seed(1)
    model = open_clip.create_model("tiny").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    return str(tmp_path / "tiny.pt"), model


def test_a_model_of_open_clip_scores(make_split, tiny):
    file, model = tiny
    split = make_split(examples(), batch_size=2)
    scorer = OpenClip("tiny", file)
    with open(file, "rb") as weights:
        digest = hashlib.sha256(weights.read()).hexdigest()
    assert ClipScore(scorer=scorer).rules["scorer"] == f"open_clip tiny, weights {digest}, pixels clip"
    preprocess = open_clip.image_transform(24, is_train=False)  # bicubic, and CLIP's mean and deviation
    pixels = torch.cat([item.batch.images for item in split.batches])
    mean, deviation = (torch.tensor(one)[:, None, None] for one in PIXELS["clip"])
    tokenizer = open_clip.get_tokenizer("tiny")

    def embed_image(row):
        whole = pixels[row].float() / 255
        bicubic = torch.nn.functional.interpolate(whole[None], (24, 24), mode="bicubic", antialias=True)[0]
        ready = (bicubic.clamp(0, 1) - mean) / deviation
        # Pillow rounds and clips after each of its two passes: the same pixels but for that, which noise makes much of.
        pil = preprocess(to_pil(pixels[row]))
        assert (ready - pil).abs().mean() < 0.02
        return model.encode_image(ready[None])[0]

    with torch.no_grad():
        assert_scores(
            ClipScore(decoding=SHORT, scorer=scorer),
            split,
            embed_image,
            lambda text: model.encode_text(tokenizer([text]))[0],
        )


def to_pil(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def test_what_a_user_gets_wrong_is_one_line(make_split, tiny, tmp_path):
    file, _ = tiny
    with pytest.raises(ArgumentError, match=r"name: open_clip has no model 'ViT-B32'; did you mean 'ViT-B-32'"):
        OpenClip("ViT-B32", file)
    with pytest.raises(ArgumentError, match="weights: nothing: there is no such file"):
        OpenClip("tiny", "nothing")
    with pytest.raises(ArgumentError, match="pixels: null, and published weights of 'ViT-L-14' differ"):
        OpenClip("ViT-L-14", file)
    assert OpenClip("ViT-L-14", file, "half").in_words.endswith("pixels half")
    assert OpenClip("ViT-B-16-SigLIP", file).in_words.endswith("pixels half")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="is no file of weights of open_clip's tiny"):
        dict(ClipScore(decoding=SHORT, scorer=OpenClip("tiny", str(tmp_path / "other.pt")))(make_split(examples())))
    with pytest.raises(ArgumentError, match=r"decoding\.n: 2 must be 1"):
        ClipScore(decoding=GenerationSettings(n=2, beams=2))


def test_a_config_names_the_model_of_open_clip(tiny):
    file, _ = tiny
    node = {"_target_": "mmlm.evaluation.clip_score.ClipScore", "scorer": {"name": "tiny", "weights": file}}
    made = build_part(node, "evaluators.clip_score", {"language": None})
    assert isinstance(made, ClipScore)
    assert made.scorer == OpenClip("tiny", file)
    node["scorer"]["weights"] = "nothing"
    with pytest.raises(UserError, match=r"evaluators\.clip_score\.scorer\.weights: nothing: there is no such file"):
        build_part(node, "evaluators.clip_score", {"language": None})


def scored_by_a_rank(file: str) -> dict[str, float]:
    """What a rank does: its share of five batches. The process is its own, and so is its list of models."""
    open_clip.factory._MODEL_CONFIGS["tiny"] = TINY
    tokenizer = fitted_tokenizer(examples())
    batches = evaluation_batches(ExampleList(examples()), tokenizer, 1)
    split = encode_split("a", small_model(tokenizer), tokenizer, batches, torch.device("cpu"), MOST_TOKENS)
    return dict(ClipScore(decoding=SHORT, scorer=OpenClip("tiny", file))(split))


@pytest.mark.slow
def test_ranks_share_what_a_model_of_open_clip_embeds(tiny):
    file, _ = tiny
    with Ranks() as ranks:
        first, second = ranks.run(2, scored_by_a_rank, file)
    assert first == second == scored_by_a_rank(file)
