"""The composed model in float64: what its outputs depend on, captions and images in any arrangement, maps, views."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import CAPTION, EMBED, WHOLE_IMAGE, ImageView
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.bridges.projection import MlpProjection
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel, parameter_counts
from mmlm.model.packing import Layout
from mmlm.model.text_encoders.transformer import TransformerTextEncoder

BRIDGES = ("pooler", "tokens", "mlp")
FUSIONS = ("cross_attention", "prefix")
CELLS = list(itertools.product(BRIDGES, FUSIONS))
BOTH = (EMBED, CAPTION)
V = 13


def make_model(
    bridge: str = "pooler",
    fusion: str = "cross_attention",
    positions: str = "learned",
    packed: bool = True,
    tie_weights: bool = True,
    multimodal_layers: int = 1,
) -> ImageTextModel:
    """Tiny, float64, evaluation mode; a cell of encoder x bridge x decoder. Every parameter away from 0."""
    torch.manual_seed(0)
    encoder = TimmVit(16, patch_size=8, width=12, depth=1, num_heads=2, class_token=False)
    bridges = {
        "pooler": lambda: AttentionalPooler(12, (2, 2), 8, num_heads=2, num_queries=3),
        "tokens": lambda: AttentionalPooler(12, (2, 2), 8, num_heads=2, num_queries=None),
        "mlp": lambda: MlpProjection(12, (2, 2), 10),
    }
    part = bridges[bridge]()
    decoder = TransformerDecoder(
        V,
        part.memory_width,
        max_tokens=8,
        width=8,
        num_heads=2,
        multimodal_layers=multimodal_layers,
        fusion=fusion,
        positions=positions,
        packed=packed,
        tie_weights=tie_weights,
    )
    model = ImageTextModel(encoder, part, decoder, embedding_width=6).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def per_caption(hidden: Tensor, batch: Batch) -> list[Tensor]:
    """float[P, D] -> one float[length - 1, D] a caption."""
    return list(hidden.split((batch.lengths - 1).tolist()))


def gradients(model: nn.Module, output: ModelOutput) -> dict[str, Tensor]:
    """Of a random function of all outputs; float64, parameters that took no part left out."""
    generator = torch.Generator().manual_seed(2)
    parts = (output.image_embedding, output.text_embedding, output.hidden[CAPTION])
    total = sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in parts)
    model.zero_grad()
    (total + (output.hidden[CAPTION] @ output.head_weight.T).square().sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_outputs_have_their_shapes_and_unit_length(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion), make_batch()
    output = model(batch, BOTH)
    assert output.image_embedding.shape == (3, 6)
    assert output.text_embedding.shape == (5, 6)
    assert output.image_embedding.dtype == output.text_embedding.dtype == torch.float64
    assert output.hidden[CAPTION].shape == (int(batch.num_targets), 8)
    assert output.head_weight is model.decoder.head_weight
    for embedding in (output.image_embedding, output.text_embedding):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(len(embedding), dtype=torch.float64))


def test_only_the_views_asked_for_are_run(make_batch):
    model, batch = make_model(), make_batch()
    calls = []
    model.decoder.multimodal_layers[0].register_forward_hook(lambda *_: calls.append("multimodal"))
    model.image_projection.register_forward_hook(lambda *_: calls.append("image"))
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    embed = model(batch, {EMBED})
    assert not embed.hidden
    assert calls == ["encoder", "image"]
    calls.clear()
    caption = model(batch, {CAPTION})
    assert (caption.image_embedding, caption.text_embedding) == (None, None)
    assert calls == ["encoder", "multimodal"]
    calls.clear()
    both = model(batch, BOTH)
    assert sorted(calls) == ["encoder", "image", "multimodal"]
    torch.testing.assert_close(both.hidden[CAPTION], caption.hidden[CAPTION], rtol=1e-12, atol=1e-12)
    assert torch.equal(both.text_embedding, embed.text_embedding)


@pytest.mark.parametrize("bridge", BRIDGES)
def test_an_image_view_embeds_the_pixels_drawn_for_it(make_batch, bridge):
    model, batch = make_model(bridge), make_batch()
    others = ImageView("others")
    pixels = torch.cat([255 - batch.images, batch.images.flip(0)])
    output = model(batch, {EMBED, WHOLE_IMAGE, others}, {others: pixels})
    torch.testing.assert_close(output.view_embedding[WHOLE_IMAGE], output.image_embedding, rtol=1e-12, atol=1e-12)
    expected = model(replace(batch, images=pixels), {WHOLE_IMAGE}).view_embedding[WHOLE_IMAGE]
    torch.testing.assert_close(output.view_embedding[others], expected, rtol=1e-12, atol=1e-12)
    assert not model(batch, {EMBED}).view_embedding


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_equals_unpacked_in_outputs_and_all_gradients(make_batch, fusion, positions):
    batch = make_batch()
    packed, plain = (make_model("pooler", fusion, positions, packed=choice) for choice in (True, False))
    one, other = packed(batch, BOTH), plain(batch, BOTH)
    torch.testing.assert_close(one.hidden[CAPTION], other.hidden[CAPTION], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.text_embedding, other.text_embedding, rtol=1e-10, atol=1e-10)
    ours, theirs = gradients(packed, one), gradients(plain, other)
    assert ours.keys() == theirs.keys() == dict(packed.named_parameters()).keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_the_text_embedding_never_depends_on_images(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion), make_batch()
    before = model(batch, BOTH)
    after = model(replace(batch, images=255 - batch.images), BOTH)
    assert torch.equal(before.text_embedding, after.text_embedding)
    assert not torch.allclose(before.image_embedding, after.image_embedding)
    assert not torch.allclose(before.hidden[CAPTION], after.hidden[CAPTION])
    model.zero_grad()
    before.text_embedding.square().sum().backward()
    untouched = [*model.encoder.parameters(), *model.bridge.parameters(), *model.decoder.multimodal_layers.parameters()]
    assert all(p.grad is None for p in untouched)


def test_embeddings_are_projections_of_the_end_token_s_state_and_the_pooled_vector(make_batch):
    model, batch = make_model(), make_batch()
    output = model(batch, {EMBED})
    states = model.decoder.unimodal(batch.tokens, batch.lengths)
    for c, length in enumerate(batch.lengths.tolist()):
        end = model.text_projection.weight @ model.text_norm(states[c, length - 1])
        torch.testing.assert_close(output.text_embedding[c], end / end.norm())
    pooled = model.bridge(model.encoder(batch.images).tokens).pooled @ model.image_projection.weight.T
    torch.testing.assert_close(output.image_embedding, pooled / pooled.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_each_caption_of_an_image_gets_what_it_would_get_alone(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion), make_batch()
    output = model(batch, BOTH)
    for c, hidden in enumerate(per_caption(output.hidden[CAPTION], batch)):
        image = int(batch.image_index[c])
        single = replace(
            batch,
            images=batch.images[image : image + 1],
            tokens=batch.tokens[c : c + 1],
            lengths=batch.lengths[c : c + 1],
            image_index=torch.tensor([0]),
        )
        alone = model(single, BOTH)
        torch.testing.assert_close(alone.hidden[CAPTION], hidden, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.text_embedding[0], output.text_embedding[c])
        torch.testing.assert_close(alone.image_embedding[0], output.image_embedding[image])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_captions_and_images_may_stand_in_any_order(make_batch, fusion):
    model, batch = make_model(fusion=fusion), make_batch()
    captions, images = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([2, 0, 1])
    shuffled = replace(
        batch,
        images=batch.images[images],
        tokens=batch.tokens[captions],
        lengths=batch.lengths[captions],
        image_index=images.argsort()[batch.image_index[captions]],
    )
    before, after = model(batch, BOTH), model(shuffled, BOTH)
    torch.testing.assert_close(after.image_embedding, before.image_embedding[images])
    torch.testing.assert_close(after.text_embedding, before.text_embedding[captions])
    expected = [per_caption(before.hidden[CAPTION], batch)[c] for c in captions]
    torch.testing.assert_close(after.hidden[CAPTION], torch.cat(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_text_only_captions_leave_the_others_alone_and_see_no_image(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion), make_batch()
    text_only = [1, 3]
    mixed = replace(batch, image_index=torch.tensor([0, TEXT_ONLY, 1, TEXT_ONLY, 0]))
    output = model(mixed, BOTH)
    with_image, without = (
        per_caption(model(batch, BOTH).hidden[CAPTION], batch),
        per_caption(output.hidden[CAPTION], batch),
    )
    other_images = per_caption(model(replace(mixed, images=255 - batch.images), BOTH).hidden[CAPTION], batch)
    for c in range(5):
        if c in text_only:
            assert torch.equal(without[c], other_images[c])
            assert not torch.allclose(without[c], with_image[c])
        else:
            torch.testing.assert_close(without[c], with_image[c], rtol=1e-10, atol=1e-10)
    assert all(gradient.isfinite().all() for gradient in gradients(model, output).values())


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_a_batch_of_text_alone_needs_no_image(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion), make_batch()
    text_only = replace(batch, image_index=torch.full((5,), TEXT_ONLY))
    without = replace(text_only, images=batch.images[:0], image_concept=batch.image_concept[:0], ids=())
    output = model(without, BOTH)
    assert output.image_embedding.shape == (0, 6)
    torch.testing.assert_close(output.hidden[CAPTION], model(text_only, BOTH).hidden[CAPTION], rtol=1e-10, atol=1e-10)
    assert all(gradient.isfinite().all() for gradient in gradients(model, output).values())
    assert model.attention_maps(without).count_nonzero() == 0


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_encoding_apart_equals_the_forward(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion), make_batch()
    output = model(batch, BOTH)
    features = model.encode_image(batch.images)
    assert torch.equal(features.embedding, output.image_embedding)
    assert torch.equal(model.encode_text(batch.tokens, batch.lengths), output.text_embedding)
    assert torch.equal(model.caption_hidden(features, batch), output.hidden[CAPTION])
    swapped = features[torch.tensor([1, 2, 0])]
    rolled = replace(batch, images=batch.images[[1, 2, 0]])
    torch.testing.assert_close(model.caption_hidden(swapped, batch), model(rolled, BOTH).hidden[CAPTION])
    assert features[:2].memory.shape[0] == features[:2].embedding.shape[0] == 2


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_decoding_with_a_cache_gives_the_logits_of_training(make_batch, bridge, fusion, positions):
    model = make_model(bridge, fusion, positions)
    batch = make_batch(lengths=(8, 8, 8), image_index=(0, 1, 2))
    hidden = model(batch, {CAPTION}).hidden[CAPTION]
    expected = (hidden @ model.decoder.head_weight.T).view(3, 7, V).float()
    cache = model.start_decoding(model.encode_image(batch.images))
    pieces = [model.decode(chunk, cache) for chunk in batch.inputs.split([1, 1, 3, 2], dim=1)]
    logits = torch.cat(pieces, dim=1)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


def explicit_maps(model: ImageTextModel, batch: Batch) -> Tensor:
    """The last of two layers' attention over memory for every caption by itself, then through the bridge to patches."""
    decoder, maps = model.decoder, torch.zeros(5, 7, 4)
    patches = model.encoder(batch.images).tokens
    memory, to_patches = model.bridge(patches).memory, model.bridge.patch_attention(patches)
    prefix = decoder.fusion == "prefix"
    first, last = decoder.multimodal_layers
    for c in range(5):
        image, length = int(batch.image_index[c]), int(batch.lengths[c]) - 1
        own, tokens = memory[image], batch.tokens[c : c + 1, :length]
        states = decoder.unimodal(tokens, torch.tensor([length]))[0]
        if prefix:
            states = torch.cat([decoder.prefix_projection(own), states])
            states = first(states, Layout(1, len(states), None))
            attention, queries_of, keys_of = last.self_attention, last.self_norm(states), last.self_norm(states)
        else:
            states = first(states, Layout(1, length, None), memory=first.cross_attention.keys_values(own[None]))
            attention, x = last.self_attention, last.self_norm(states)
            heads = [attention.heads(part[None]) for part in (attention.query(x), *attention.key_value(x).chunk(2, -1))]
            states = states + attention.output(attention.attend(*heads, causal=True))[0]
            attention, queries_of, keys_of = last.cross_attention, last.cross_norm(states), own
        queries, keys = attention.query(queries_of), attention.key_value(keys_of)[:, :8]
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = queries[:, part] @ keys[:, part].T / 2
            if prefix:
                scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), float("-inf"))
            weights = scores.softmax(-1)[-length:, : len(own)]
            maps[c, :length] += (weights @ to_patches[image].double()).detach().float() / 2
    return maps.view(5, 7, 2, 2)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("bridge", "fusion"), [("pooler", "cross_attention"), ("tokens", "cross_attention"), ("mlp", "prefix")]
)
def test_attention_maps_equal_an_explicit_computation(make_batch, bridge, fusion, packed):
    model, batch = make_model(bridge, fusion, packed=packed, multimodal_layers=2), make_batch()
    maps = model.attention_maps(batch)
    assert maps.shape == (5, 7, 2, 2)
    assert maps.dtype == torch.float32
    expected = explicit_maps(model, batch)
    real = batch.target_mask
    torch.testing.assert_close(maps[real], expected[real], rtol=1e-5, atol=1e-6)
    shares = maps.sum((-1, -2))[real]
    if fusion == "cross_attention":
        torch.testing.assert_close(shares, torch.ones_like(shares))
    else:
        assert ((shares > 0) & (shares < 1)).all()


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_text_only_captions_looked_nowhere(make_batch, bridge, fusion):
    model = make_model(bridge, fusion)
    maps = model.attention_maps(make_batch(image_index=(0, TEXT_ONLY, 1, TEXT_ONLY, 0)))
    assert maps[[1, 3]].count_nonzero() == 0
    assert (maps[[0, 2, 4]][:, 0].sum((-1, -2)) > 0).all()


@pytest.mark.parametrize("tie_weights", [True, False])
def test_parameters_are_counted_once_and_by_part(tie_weights):
    model = make_model(tie_weights=tie_weights)
    counts = parameter_counts(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert list(counts) == ["encoder", "bridge", "decoder", "image_projection", "text_norm", "text_projection"]
    assert counts["image_projection"] == 8 * 6
    shared = nn.ModuleDict({"first": model.decoder, "second": model.decoder.token_embedding})
    assert parameter_counts(shared)["second"] == 0


@pytest.mark.parametrize(("bridge", "fusion"), CELLS)
def test_bfloat16_autocast_gives_float32_embeddings_near_the_exact_ones(make_batch, bridge, fusion):
    model, batch = make_model(bridge, fusion).float(), make_batch()
    exact = model(batch, BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch, BOTH)
        cache = model.start_decoding(model.encode_image(batch.images))
        logits = model.decode(batch.tokens[:3, :2], cache)
    assert rough.text_embedding.dtype == rough.image_embedding.dtype == logits.dtype == torch.float32
    for one, other in (
        (rough.image_embedding, exact.image_embedding),
        (rough.text_embedding, exact.text_embedding),
        (rough.hidden[CAPTION].float(), exact.hidden[CAPTION]),
    ):
        assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min() > 0.99


def test_without_projections_the_towers_vectors_are_the_embeddings():
    tokens, lengths = torch.randint(3, 40, (2, 5)), torch.tensor([5, 4])
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for width, fits in ((16, True), (8, False)):
        encoder = TimmVit(16, width=16, depth=1, num_heads=2, patch_size=8, pool="mean")
        text = TransformerTextEncoder(40, 8, width=width, num_heads=2, num_layers=1)
        if not fits:
            with pytest.raises(
                UserError, match=r"^model\.embedding_width: null needs vectors of one width, and the im"
            ):
                ImageTextModel(encoder, None, None, None, text)
            continue
        model = ImageTextModel(encoder, None, None, None, text).eval()
        assert model.sizes.embedding_width == 16
        pooled = torch.nn.functional.normalize(encoder(images).pooled, dim=-1)
        torch.testing.assert_close(model.encode_image(images).embedding, pooled)
        embedded = torch.nn.functional.normalize(text(tokens, lengths), dim=-1)
        torch.testing.assert_close(model.encode_text(tokens, lengths), embedded)
