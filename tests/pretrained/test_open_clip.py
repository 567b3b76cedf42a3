"""open_clip's CoCa and ours with the same weights: embeddings, logits, losses and gradients; and the way back."""

import copy

import pytest
import torch
from open_clip import get_model_config
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from torch import Tensor

from mmlm.core.batch import Batch, Caption
from mmlm.core.errors import UserError
from mmlm.core.views import CAPTION, EMBED, StepKey
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.pretrained.open_clip import SCALE, coca_from_open_clip, coca_to_open_clip
from mmlm.training.train_step import TrainStep

TINY = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "layers": 2,
        "width": 24,
        "head_width": 12,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 5,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 9,
        "vocab_size": 40,
        "width": 16,
        "heads": 2,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 9, "vocab_size": 40, "width": 16, "heads": 2, "layers": 3},
}
SAME_WIDTH = TINY | {"vision_cfg": TINY["vision_cfg"] | {"width": 16, "head_width": 8}}
"""The pooler's queries are as wide as the image tokens: PyTorch then stores one matrix in place of three."""


def theirs_of(config: dict, dtype: torch.dtype) -> CoCa:
    """open_clip's CoCa with random weights, every one of them initialised (its output projection is not by itself)."""
    torch.manual_seed(0)
    sizes = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")}
    # Their decoder's output is as wide as ``embed_dim`` of the builder that CoCa hands the vocabulary.
    model = CoCa(**copy.deepcopy(sizes)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "text_decoder.text_projection" or parameter.ndim == 1 or name.endswith("embedding"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=dtype) * (parameter.ndim == 1 or 0.3))
                if "ln_" in name and name.endswith("weight"):
                    parameter.add_(1)
    return model


def ours_of(config: dict, dtype: torch.dtype) -> TrainStep:
    vision, text, decoder = (config[key] for key in ("vision_cfg", "text_cfg", "multimodal_cfg"))
    encoder = TimmVit(
        vision["image_size"],
        "vit_base_patch32_clip_224",
        patch_size=vision["patch_size"],
        width=vision["width"],
        depth=vision["layers"],
        num_heads=vision["width"] // vision.get("head_width", 64),
        keep_prefix_tokens=True,
        final_norm=False,
    )
    bridge = AttentionalPooler(
        encoder.width,
        encoder.grid,
        config["embed_dim"],
        vision["attn_pooler_heads"],
        vision.get("attn_pooler_queries", 256) - 1,
        num_prefix_tokens=1,
    )
    transformer = TransformerDecoder(
        text["vocab_size"],
        config["embed_dim"],
        text["context_length"],
        width=text["width"],
        num_heads=text["heads"],
        unimodal_layers=text["layers"],
        multimodal_layers=decoder["layers"],
        alternating=True,
        memory_norm=True,
        text_pooling="cls_shifted_mask",
        tie_weights=False,
    )
    model = ImageTextModel(encoder, bridge, transformer, config["embed_dim"])
    objective = WeightedSum(
        {"contrastive": InfoNCE(), "captioning": Captioning()}, {"contrastive": 1.0, "captioning": 2.0}
    )
    return TrainStep(model, objective).to(dtype)


def batch_of(config: dict, lengths: list[int]) -> Batch:
    """Random images and captions of ``lengths`` (start and end included), without open_clip's padding id in them."""
    generator = torch.Generator().manual_seed(1)
    size, vocabulary = config["vision_cfg"]["image_size"], config["text_cfg"]["vocab_size"]
    count, longest = len(lengths), max(lengths)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, vocabulary, (count, longest), generator=generator)
    own = torch.arange(count)
    tokens = tokens.masked_fill(torch.arange(longest) >= torch.tensor(lengths)[:, None], 0)
    captions = tuple(Caption(str(i)) for i in range(count))
    return Batch(images, tokens, torch.tensor(lengths), own, own, own, own, tuple("abcdefgh"[:count]), captions)


def run_theirs(model: CoCa, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """On normalised images and tokens padded to their full context."""
    padded = torch.nn.functional.pad(tokens, (0, model.context_length - tokens.shape[1]))
    out = model(images, padded)
    loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    contrastive, captioning = loss(
        out["image_features"], out["text_features"], out["logits"], out["labels"], out["logit_scale"]
    )
    (contrastive + captioning).backward()
    real = out["labels"] != 0
    return {
        "image": out["image_features"],
        "text": out["text_features"],
        "logits": out["logits"][real],
        "contrastive": contrastive,
        "captioning": captioning,
    }


def run_ours(step: TrainStep, batch: Batch) -> dict[str, Tensor]:
    output = step.model(batch, {EMBED, CAPTION})
    loss = step.objective(output, batch, StepKey(), step.objective.count((batch,), StepKey()))
    loss.total.backward()
    return {
        "image": output.image_embedding,
        "text": output.text_embedding,
        "logits": output.hidden[CAPTION] @ output.head_weight.T,
        **{name: term.weight * term.value for name, term in loss.terms.items()},
    }


def same_weights(config: dict, dtype: torch.dtype) -> tuple[CoCa, TrainStep]:
    theirs, ours = theirs_of(config, dtype), ours_of(config, dtype)
    weights = theirs.state_dict()
    ours.model.load_state_dict(coca_from_open_clip(weights, ours.model.state_dict()))
    ours.objective.objectives["contrastive"].logit_scale.data.copy_(weights[SCALE])
    return theirs, ours


def gradients(theirs: CoCa, ours: TrainStep) -> dict[str, tuple[Tensor, Tensor]]:
    """Theirs and ours, ours under their names."""
    own = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    renamed = coca_to_open_clip(own, ours.objective.objectives["contrastive"].logit_scale.grad)
    return {name: (parameter.grad, renamed[name]) for name, parameter in theirs.named_parameters()}


@pytest.mark.parametrize("config", [TINY, SAME_WIDTH], ids=["tiny", "same width"])
@pytest.mark.parametrize("lengths", [[5, 3, 7, 2], [9, 4, 9, 8]], ids=["short", "some fill the context"])
def test_the_same_weights_give_the_same_losses_and_gradients(config, lengths):
    theirs, ours = same_weights(config, torch.float64)
    batch = batch_of(config, lengths)
    expected = run_theirs(theirs, ours.model.encoder.normalize(batch.images), batch.tokens)
    found = run_ours(ours, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
    for name, (value, own) in gradients(theirs, ours).items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(own, value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("config", [TINY, SAME_WIDTH], ids=["tiny", "same width"])
def test_there_and_back_is_exact(config):
    theirs = theirs_of(config, torch.float32).state_dict()
    ours = coca_from_open_clip(theirs, ours_of(config, torch.float32).model.state_dict())
    back = coca_to_open_clip(ours, theirs[SCALE])
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], tensor) and back[name].is_contiguous() for name, tensor in theirs.items())


def test_what_is_missing_or_unexpected_is_listed():
    weights = theirs_of(TINY, torch.float32).state_dict()
    ours = ours_of(TINY, torch.float32).model.state_dict()
    for name in ("text.cls_emb", "visual.proj"):
        del weights[name]
    weights |= {f"extra.{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(UserError) as refused:
        coca_from_open_clip(weights, ours)
    assert str(refused.value) == (
        "the open_clip weights cannot be converted: it has no text.cls_emb, visual.proj and an unexpected extra.0, "
        "extra.1, extra.2, extra.3, extra.4 and 2 more"
    )
    del ours["decoder.norm.weight"]
    with pytest.raises(UserError, match=r"^the run cannot be converted: it has no decoder\.norm\.weight$"):
        coca_to_open_clip(ours, torch.zeros(()))


def test_weights_of_another_size_are_refused():
    weights = theirs_of(TINY, torch.float32).state_dict()
    weights["visual.positional_embedding"] = torch.zeros(10, 24)
    with pytest.raises(UserError, match=r"'encoder\.vit\.pos_embed' is \[1, 10, 24\] there and \[1, 5, 24\] here"):
        coca_from_open_clip(weights, ours_of(TINY, torch.float32).model.state_dict())


def test_the_padding_token_of_open_clip_trains_through_the_shifted_mask():
    """Id 0 stands in no caption here: its embedding is read by the class token alone, in both models."""
    theirs, ours = same_weights(TINY, torch.float64)
    batch = batch_of(TINY, [5, 9])
    run_theirs(theirs, ours.model.encoder.normalize(batch.images), batch.tokens)
    run_ours(ours, batch)
    own = ours.model.decoder.token_embedding.weight.grad[0]
    assert own.abs().max() > 1e-6
    torch.testing.assert_close(own, theirs.text.token_embedding.weight.grad[0], rtol=1e-9, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.slow
def test_coca_vit_b_32_agrees_in_float32():
    config = get_model_config("coca_ViT-B-32")
    theirs, ours = same_weights(config, torch.float32)
    batch = batch_of(config, [9, 14, 76, 5])
    expected = run_theirs(theirs, ours.model.encoder.normalize(batch.images), batch.tokens)
    found = run_ours(ours, batch)
    for name in ("contrastive", "captioning"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)
    for name in ("image", "text", "logits"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)
    pairs = gradients(theirs, ours)
    whole = torch.stack([value.norm() for value, _ in pairs.values()]).norm()
    assert torch.stack([(own - value).norm() for value, own in pairs.values()]).norm() < 1e-4 * whole
    for name, (value, own) in pairs.items():
        assert value.norm() > 0, name
        # With random weights attention is all but even, and the gradients of its queries (1e-7 of the whole) are the
        # differences of equal numbers: float32 has no four digits of them.
        assert (own - value).norm() < 1e-4 * torch.maximum(value.norm(), 1e-4 * whole), name
