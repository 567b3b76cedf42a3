"""What a model can do, against plain formulas: one item or several, any batch size and order, in every form."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.core.errors import UserError
from mmlm.core.views import EMBED
from mmlm.data.images import read_image
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.experiment.build import build_transform
from mmlm.experiment.experiment import build_experiment
from mmlm.model.attention import AttentionRecord
from mmlm.model.model import ImageTextModel
from mmlm.pretrained.files import MmlmConfig
from mmlm.pretrained.model import MmlmModel
from mmlm.pretrained.results import WrittenCaption
from tests.pretrained.conftest import TEXTS


@pytest.fixture
def model(make):
    return make()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


# Embeddings


def test_images_of_any_size_and_form_in_batches_of_any_size(model, files, pictures):
    pictures[0] = pictures[0].convert("P").resize((40, 23))
    tensors = [read_image(file) for file in files]
    tensors[0] = torch.from_numpy(np.array(pictures[0].convert("RGB"))).permute(2, 0, 1)
    embeddings = model.encode_image(pictures)
    assert (embeddings.shape, embeddings.dtype) == ((8, 16), torch.float32)
    close(embeddings.norm(dim=1), torch.ones(8))
    assert torch.equal(embeddings, model.encode_image(tensors))
    assert torch.equal(embeddings, model.encode_image([pictures[0], *files[1:]]))
    close(model.encode_image(pictures, batch_size=3), embeddings)
    close(model.encode_image(pictures[::-1]), embeddings.flip(0))
    close(model.encode_image(pictures[2]), embeddings[2:3])
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 16)


def test_a_text_does_not_depend_on_the_others(model):
    texts = [*TEXTS, ""]
    together = model.encode_text(texts)
    close(model.encode_text(texts, batch_size=1), together)
    for index, text in enumerate(texts):
        close(model.encode_text(text), together[index : index + 1])
    assert not torch.allclose(together[0], model.encode_text(TEXTS[0], language="en"))


def test_methods_do_what_the_model_does(tiny_config, tmp_path, files):
    experiment = build_experiment(tiny_config(), tmp_path / "new")
    described = MmlmConfig.of_run(tiny_config(), experiment.tokenizer.vocab_size)
    model = MmlmModel(described, experiment.model, experiment.tokenizer, build_transform(tiny_config())).eval()
    batch = next(iter(experiment.validation["validation"]))
    output = model(batch, (EMBED,))
    by_id = dict(zip(batch.ids, output.image_embedding, strict=True))
    torch.testing.assert_close(model.encode_image(files[0])[0], by_id[files[0].name], atol=1e-5, rtol=1e-4)
    texts = [caption.text for caption in batch.captions]
    torch.testing.assert_close(model.encode_text(texts), output.text_embedding, atol=1e-5, rtol=1e-4)


def test_similarity_is_the_product_of_the_embeddings(model, files):
    images, texts = model.encode_image(files), model.encode_text(TEXTS)
    expected = torch.tensor([[sum((a * b).tolist()) for b in texts] for a in images])
    close(model.similarity(files, TEXTS), expected)
    close(model.similarity(files, TEXTS, batch_size=1), expected)
    close(model.similarity(files[3], TEXTS), expected[3:4])
    close(model.similarity(files, TEXTS[1]), expected[:, 1:2])
    close(model.similarity(files[3], TEXTS[1]), expected[3:4, 1:2])
    assert model.similarity([], TEXTS).shape == (0, 2)
    assert model.similarity(files, []).shape == (8, 0)


# Captions


def likely_to_end(model):
    """The model, which now ends its captions after some tokens."""
    with torch.no_grad():
        model.model.decoder.head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
        model.model.decoder.head.bias[model.tokenizer.end_id] = 2.5
    return model


def plain_caption(model, file):
    """The ids of a greedy caption and the logarithm of each one's probability, by whole prefixes."""
    features = model.model.encode_image(model.transform([read_image(file)], None))
    ids, terms = [model.tokenizer.start_id(model.config.language)], []
    while len(ids) < model.config.max_tokens and ids[-1] != model.tokenizer.end_id:
        logits = model.model.decode(torch.tensor([ids]), model.model.start_decoding(features))[0, -1]
        shares = [math.exp(value) for value in logits.tolist()]
        ids.append(shares.index(max(shares)))
        terms.append(math.log(max(shares) / sum(shares)))
    return ids[1:], terms


@pytest.mark.parametrize("decoder", ["transformer", "prefix", "lstm"])
def test_a_caption_tells_its_log_probability(make, files, decoder):
    model = likely_to_end(make(f"decoder={decoder}"))
    lengths = set()
    for caption, file in zip(model.caption(files), files, strict=True):
        ids, terms = plain_caption(model, file)
        lengths.add(len(ids))
        assert (caption.text, str(caption)) == (model.tokenizer.decode(ids),) * 2
        assert caption.token_log_probabilities == pytest.approx(terms, abs=1e-5)
        assert caption.log_probability == pytest.approx(sum(terms), abs=1e-4)
        assert caption.per_token == pytest.approx(sum(terms) / len(terms), abs=1e-5)
    assert lengths - {model.config.max_tokens - 1}, "some end before they are cut"


def test_captions_do_not_depend_on_batches_and_alternatives(model, files):
    captions = likely_to_end(model).caption(files, alternatives=3)
    for other in (
        model.caption(files, batch_size=3, alternatives=3),
        model.caption(files[::-1], alternatives=3)[::-1],
        [model.caption(file, alternatives=3) for file in files],
    ):
        for one, two in zip(captions, other, strict=True):
            assert (one.text, [a.text for a in one.alternatives]) == (two.text, [a.text for a in two.alternatives])
            assert one.log_probability == pytest.approx(two.log_probability, abs=1e-4)
    plain = model.caption(files)
    assert [caption.text for caption in plain] == [caption.text for caption in captions]
    assert all(caption.alternatives == () for caption in plain)
    for caption in captions:
        assert 1 <= len(caption.alternatives) <= 3
        texts = [caption.text, *(other.text for other in caption.alternatives)]
        assert len(set(texts)) == len(texts)
        totals = [other.log_probability for other in caption.alternatives]
        assert totals == sorted(totals, reverse=True)
        assert all(total < 0 for total in totals)
    assert model.caption([]) == []
    assert [c.image for c in captions] == files


@pytest.mark.parametrize(
    "settings",
    [GenerationSettings(beams=4, n=3), GenerationSettings(temperature=1.0, top_p=0.9, n=3, seed=4)],
    ids=["beam", "samples"],
)
def test_captions_by_settings(model, files, settings):
    captions = likely_to_end(model).caption(files, settings=settings)
    for other in (
        model.caption(files, batch_size=3, settings=settings),
        model.caption(files[::-1], settings=settings)[::-1],
        [model.caption(file, settings=settings) for file in files],
    ):
        for one, two in zip(captions, other, strict=True):
            assert (one.text, [a.text for a in one.alternatives]) == (two.text, [a.text for a in two.alternatives])
    for caption in captions:
        several = [caption, *caption.alternatives]
        assert len(several) == 3
        assert [one.score for one in several] == sorted((one.score for one in several), reverse=True)
        assert all(one.score == pytest.approx(one.per_token, abs=1e-5) for one in several)
    prompted = model.caption(files[0], settings=GenerationSettings(prompt="a red", beams=2))
    assert prompted.text.startswith("a red")
    with pytest.raises(UserError, match="alternatives: 1 is for greedy captions; set n in settings instead"):
        model.caption(files, settings=settings, alternatives=1)


def test_a_language_of_captions_is_checked(make, model):
    with pytest.raises(UserError, match="a caption's language is 'xx'"):
        model.caption(Image.new("RGB", (8, 8)), language="xx")
    bare = MmlmModel(model.config)
    assert isinstance(bare.model, ImageTextModel)
    with pytest.raises(UserError, match="tokenizer: this model was made without one"):
        bare.encode_text(["a"])


# Attention


def test_attention_is_that_of_the_decoder_for_each_token(model, files):
    text = "a red square"
    found = model.attention(files[0], text)
    ids = model.tokenizer.encode(text, None, 100)[1:-1]
    assert found.maps.shape == (len(ids), 2, 2)
    assert len(found.tokens) == len(ids)
    assert found.words == ("a", "red", "square")
    assert (found.maps >= 0).all()
    close(found.maps.sum(dim=(1, 2)), torch.ones(len(ids)))
    close(found.word_maps.sum(dim=(1, 2)), torch.ones(3))
    assert torch.equal(found.seen, model.transform([read_image(files[0])], None)[0])
    # By hand: the last layer's attention over the memory, the mean over heads, times the patches in each of its tokens.
    record = AttentionRecord()
    patches = model.model.encoder(found.seen[None]).tokens
    tokens = torch.tensor([model.tokenizer.encode(text, None, 100)])
    given = (tokens, torch.tensor([tokens.shape[1]]), model.model.bridge(patches).memory, torch.tensor([0]))
    model.model.decoder.hidden(*given, record=record)
    over_memory = record.weights[-1][0].mean(dim=0)[: len(ids)]
    close(found.maps, (over_memory @ model.model.bridge.patch_attention(patches)[0]).detach().unflatten(1, (2, 2)))
    several = model.attention(files[:2], [text, "a"])
    close(several[0].maps, found.maps)
    close(several[1].maps, model.attention(files[1], "a").maps)
    written = model.attention(files[0])
    assert written.text == model.caption(files[0]).text


def test_attention_needs_a_decoder_that_records_it(make, two_towers, files, monkeypatch):
    towers = make(*two_towers)
    with pytest.raises(UserError, match="attention: this model has no decoder; use a model whose decoder reads"):
        towers.attention(files[0], "a")
    with pytest.raises(UserError, match="caption: this model has no decoder"):
        towers.caption(files)
    assert towers.similarity(files[0], "a").shape == (1, 1)
    model = make()
    with pytest.raises(UserError, match="texts: 1 for 2 images; give one text for each image"):
        model.attention(files[:2], "a")
    monkeypatch.setattr(model.model.decoder, "records_attention", False)
    with pytest.raises(UserError, match="has a decoder, TransformerDecoder, that records none"):
        model.attention(files[0], "a")


# Labels


def plain_probabilities(model, file, words, templates, scale):
    image = model.encode_image(file)[0].double()
    terms = []
    for of_label in words:
        prompts = [template.replace("{}", word) for word in of_label for template in templates]
        mean = sum(model.encode_text(prompt)[0].double() for prompt in prompts) / len(prompts)
        terms.append(math.exp(scale * float(image @ mean / mean.norm())))
    return [term / sum(terms) for term in terms]


def test_probabilities_of_labels_are_the_plain_formula(model, files):
    words = {"red": ["a red square", "a red circle"], "blue": "blue", "none": ["nothing"]}
    lists = [[of] if isinstance(of, str) else of for of in words.values()]
    for templates, scale, source in (
        (["{}", "my {}"], None, "of CLIP, since this model has none of its own; set another by scale="),
        ("a photo of a {}", 7.5, "that was given"),
    ):
        found = model.classify(files, words, templates, scale=scale)
        by_hand = [templates] if isinstance(templates, str) else templates
        for one, file in zip(found, files, strict=True):
            expected = plain_probabilities(model, file, lists, by_hand, scale or 100)
            assert one.labels == ("red", "blue", "none")
            assert one.probabilities == pytest.approx(expected, abs=1e-4)
            assert (one.label, one.probability) == one.top(1)[0]
            assert one.label == one.labels[expected.index(max(expected))]
            assert one.scale.source == source
            assert one.image == file
    single = model.classify(files[2], words, "a photo of a {}", scale=7.5, batch_size=1)
    assert single.probabilities == pytest.approx(found[2].probabilities, abs=1e-5)
    assert model.classify([], ["a", "b"]) == []


def test_the_scale_that_was_learned_is_taken(model, files):
    model.config.similarity_scale, model.config.similarity_scale_source = 12.5, "of the run's objective sigmoid"
    found = model.classify(files[0], ["red", "blue"])
    expected = plain_probabilities(model, files[0], [["red"], ["blue"]], ["{}"], 12.5)
    assert found.probabilities == pytest.approx(expected, abs=1e-6)
    assert (found.scale.value, found.scale.source) == (12.5, "of the run's objective sigmoid")
    assert "scale 12.5 of the run's objective sigmoid" in repr(model)


# Search


def test_search_gives_the_order_of_all_similarities(model, files, pictures, tmp_path):
    index = model.index(files[0].parent, tmp_path / "index")
    assert (index.embedded, index.names) == (8, tuple(file.name for file in files))
    text = "a red square"
    expected = model.similarity(files, text)[:, 0]
    order = expected.argsort(descending=True, stable=True).tolist()
    for images in (index, files[0].parent, files, pictures, list(map(str, files))):
        found = model.search(text, images, top=3) if images is not files[0].parent else model.search(text, index, 3)
        assert [hit.row for hit in found] == order[:3]
        assert [hit.similarity for hit in found] == pytest.approx(expected[order[:3]].tolist(), abs=1e-6)
    assert found[0].name == str(files[order[0]])
    assert model.search(text, pictures)[0].name == f"images.{order[0]}"
    assert [hit.image for hit in model.search(text, index)] == [files[row] for row in order]
    both = model.search([text, files[5]], index, top=100)
    assert len(both) == 2
    assert [hit.row for hit in both[0]] == order
    assert (both[1][0].row, len(both[1])) == (5, 8)
    assert both[1][0].similarity == pytest.approx(1)
    assert len(model.search(text, [])) == 0


def test_an_index_is_of_one_model_and_knows_what_has_changed(model, make, files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = files[0].parent
    index = model.index(folder)
    assert model.index(folder).embedded == 0
    files[0].write_bytes(files[5].read_bytes())
    changed = model.index(folder)
    assert changed.embedded == 0, "its content is known"
    assert torch.equal(changed.vectors[0], index.vectors[5])
    assert model.search(files[5], folder, top=2)[0].row == 0, "of equal ones, the first"
    other = make()
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-3)
    with pytest.raises(UserError, match=rf"images: the index of {folder} is of another model; make one with index"):
        other.search("a", index)


def test_a_path_as_a_text_is_refused_and_a_text_that_looks_like_one_is_not(model, files):
    with pytest.raises(UserError, match=rf"^query\.1: {files[0]} is a file; to search by the image, give Path\('"):
        model.search(["a", str(files[0])], files)
    for text in ("no such.png", "long" * 200 + ".png", "null\0.png"):
        assert len(model.search(text, files, top=2)) == 2


def test_a_damaged_index_is_told_as_a_warning(model, files, tmp_path):
    model.index(files[0].parent, tmp_path)
    (kept,) = tmp_path.glob("index-*")
    kept.write_bytes(kept.read_bytes()[:-2])
    with pytest.warns(UserWarning, match="was damaged; it is made anew"):
        assert model.index(files[0].parent, tmp_path).embedded == 8


# What is refused, and what is shown


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_image(["gone.png"]), "images.0: gone.png: there is no such file"),
        (lambda m: m.encode_image([Image.new("L", (4, 4))] * 3 + ["gone.png"], batch_size=2), "images.3: gone.png:"),
        (lambda m: m.encode_image("gone.png"), "images: gone.png: there is no such file"),
        (lambda m: m.encode_image([["a.png"]]), "images.0: a list is no image; give a path"),
        (lambda m: m.encode_image(torch.zeros(2, 3, 4, 4)), "several images are a list of them"),
        (lambda m: m.caption(7), "images: a int is no image"),
        (lambda m: m.caption("a.png", alternatives=-1), "alternatives: -1 must be at least 0"),
        (lambda m: m.encode_text(["a cat", 7]), "texts.1: a int is no text; give a str"),
        (lambda m: m.encode_text("a", language="xx"), "a caption's language is 'xx'"),
        (lambda m: m.similarity([], "a", batch_size=0), "batch_size: 0 must be at least 1"),
        (lambda m: m.classify([], "cat"), "labels: a str is no list of labels; give a list of str, or a dict"),
        (lambda m: m.classify([], {"cat", "dog"}), "labels: a set is no list of labels"),
        (lambda m: m.classify([], ["cat"]), "labels: there are 1; give at least two"),
        (lambda m: m.classify([], ["cat", "cat"]), "labels: 'cat' is there twice; remove one"),
        (lambda m: m.classify([], ["cat", " "]), "labels: ' ' is no label"),
        (lambda m: m.classify([], {"cat": "x", "dog": []}), "labels: 'dog' must have words"),
        (lambda m: m.classify([], {"cat": "x", "dog": 3}), "labels: 'dog' must have words"),
        (lambda m: m.classify([], ["a", "b"], "photo"), "templates: 'photo' must have {} once"),
        (lambda m: m.classify([], ["a", "b"], []), "templates: [] has no prompt"),
        (lambda m: m.classify([], ["a", "b"], [7]), "templates: a int is no text"),
        (lambda m: m.classify([], ["a", "b"], scale=0), "scale: 0 must be above 0 and finite"),
        (lambda m: m.search("a", [], top=0), "top: 0 must be at least 1"),
        (lambda m: m.search(" ", []), "query: is blank; give a text, or an image as a Path"),
        (lambda m: m.search(["a", 3], []), "query.1: a int is no image"),
        (lambda m: m.search("a", "nowhere"), "images: nowhere is no folder; give one, a list of images, or what index"),
    ],
)
def test_mistakes_are_one_line_that_names_the_item(model, call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        call(model)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_is_described_in_a_few_lines(model):
    text = repr(model)
    assert len(text.splitlines()) <= 9
    count = sum(value.numel() for value in model.parameters())
    assert text.startswith(f"MmlmModel: {count:,} parameters, on cpu in float32\n")
    assert re.search(r"encoder +TimmVit, [\d,]+ parameters, 16 x 16 pixels as 2 x 2 patches", text)
    assert "no scale of its own" in text
    assert "up to 24 tokens of 280; en" in text
    assert text.count("\n") == model._repr_html_().count("<tr>")


def test_results_show_their_pictures_and_any_text_as_text(model, files, tmp_path):
    named = files[0].rename(files[0].with_name("<script>x.png"))
    files = [named, *files[1:]]
    evil = WrittenCaption("<script>alert(1)</script>", (-1.0,), (), named)
    captions = model.caption(files, alternatives=1)
    shown = {
        evil._repr_html_(): 1,
        captions._repr_html_(): 8,
        captions[0]._repr_html_(): 1,
        model.classify(files, ["<b>", "b"])._repr_html_(): 8,
        model.search("<script>", files, top=3)._repr_html_(): 3,
        model.search(named, files, top=3)._repr_html_(): 4,
        model.attention(named, "a <script>")._repr_html_(): 3,
    }
    for html, pictures in shown.items():
        assert html.count('src="data:image/webp;base64,') == pictures
        assert "<script" not in html
        assert "<b>" not in html
    named.unlink()
    assert captions[0]._repr_html_().count("<img") == 0, "a file that is gone has no picture"
