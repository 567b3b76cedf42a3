"""Parameters and FLOPs of a model's parts, against the textbook formulas."""

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.views import CAPTION, EMBED, TextView
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.costs import TrainingCosts, model_costs
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel, parameter_counts
from mmlm.model.protocols import BridgeOutput, EncoderOutput

IMAGE, PATCH, WIDTH, VOCABULARY, TOKENS, QUERIES, EMBEDDING = 16, 8, 12, 13, 8, 3, 6
PATCHES = (IMAGE // PATCH) ** 2


def make_model(fusion: str = "cross_attention", dropout: float = 0.0) -> ImageTextModel:
    """Every width is 12."""
    encoder = TimmVit(IMAGE, patch_size=PATCH, width=WIDTH, depth=1, num_heads=2, class_token=False)
    bridge = AttentionalPooler(WIDTH, (2, 2), WIDTH, num_heads=2, num_queries=QUERIES)
    decoder = TransformerDecoder(VOCABULARY, WIDTH, TOKENS, width=WIDTH, num_heads=2, fusion=fusion, dropout=dropout)
    return ImageTextModel(encoder, bridge, decoder, EMBEDDING)


class PooledVit(nn.Module):
    """A ViT that pools by the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = TimmVit(IMAGE, patch_size=PATCH, width=WIDTH, depth=1, num_heads=2, class_token=False)
        self.width, self.grid = self.vit.width, self.vit.grid
        self.num_prefix_tokens, self.pooled_width = 0, WIDTH

    def forward(self, images: Tensor) -> EncoderOutput:
        tokens = self.vit(images).tokens
        return EncoderOutput(tokens, tokens.mean(dim=1))


class TorchTower(nn.Module):
    """A text tower of torch's own layers, which have a fused path for evaluation."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.layer(self.embedding(tokens)).mean(dim=1)


def linear(rows: int, width: int, out: int) -> int:
    return 2 * rows * width * out


def attention(queries: int, keys: int) -> int:
    """Both products of attention over all heads together."""
    return 4 * queries * keys * WIDTH


def layer(tokens: int) -> int:
    """Self-attention and feed-forward of a Transformer layer."""
    projections = linear(tokens, WIDTH, 4 * WIDTH)
    return projections + attention(tokens, tokens) + 2 * linear(tokens, WIDTH, 4 * WIDTH)


ENCODER = linear(PATCHES, 3 * PATCH**2, WIDTH) + layer(PATCHES)
HEAD = linear(TOKENS - 1, WIDTH, VOCABULARY)


def test_flops_are_those_of_the_formulas():
    flops = model_costs(make_model(), IMAGE, TOKENS).flops
    queries = QUERIES + 1
    cross = linear(TOKENS - 1, WIDTH, 2 * WIDTH) + linear(QUERIES, WIDTH, 2 * WIDTH) + attention(TOKENS - 1, QUERIES)
    assert flops == {
        "encoder": ENCODER,
        "bridge": linear(queries, WIDTH, 2 * WIDTH) + linear(PATCHES, WIDTH, 2 * WIDTH) + attention(queries, PATCHES),
        "decoder": layer(TOKENS) + layer(TOKENS - 1) + cross + HEAD,
        "image_projection": linear(1, WIDTH, EMBEDDING),
        "text_norm": 0,
        "text_projection": linear(1, WIDTH, EMBEDDING),
    }


def test_a_prefix_is_part_of_the_text():
    flops = model_costs(make_model("prefix"), IMAGE, TOKENS).flops
    assert flops["decoder"] == layer(TOKENS) + layer(QUERIES + TOKENS - 1) + HEAD


def test_only_what_training_asks_for_counts():
    model = make_model()
    both = model_costs(model, IMAGE, TOKENS).flops
    caption = model_costs(model, IMAGE, TOKENS, {CAPTION}).flops
    embed = model_costs(model, IMAGE, TOKENS, {EMBED}).flops
    assert embed["decoder"] == layer(TOKENS)
    assert caption["decoder"] == both["decoder"], "the text-only layers run either way"
    assert caption["image_projection"] == caption["text_projection"] == 0
    assert embed["encoder"] == caption["encoder"] == ENCODER


def test_each_other_way_to_read_captions_is_a_pass_of_its_own():
    for fusion in ("cross_attention", "prefix"):
        model = make_model(fusion)
        caption = model_costs(model, IMAGE, TOKENS, {CAPTION}).flops
        one = model_costs(model, IMAGE, TOKENS, {TextView("parallel")}).flops
        three = model_costs(model, IMAGE, TOKENS, {CAPTION, TextView("parallel"), TextView("masked")}).flops
        # It never reads the end token, which a decoder that goes on from its text-only states does.
        assert one["decoder"] == caption["decoder"] - layer(TOKENS) + layer(TOKENS - 1)
        assert three["decoder"] == caption["decoder"] + 2 * one["decoder"]
        assert {name: count for name, count in one.items() if name != "decoder"} == {
            name: count for name, count in caption.items() if name != "decoder"
        }


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
def test_a_pair_costs_a_pass_of_the_decoder_without_its_head(fusion):
    model = make_model(fusion)
    without, one, three = (model_costs(model, IMAGE, TOKENS, {EMBED}, pairs).flops for pairs in (0, 1, 3))
    # The end token is an input too; the image's keys and values are computed once for all of its pairs.
    image = 0 if fusion == "prefix" else linear(QUERIES, WIDTH, 2 * WIDTH)
    cross = linear(TOKENS, WIDTH, 2 * WIDTH) + attention(TOKENS, QUERIES)
    text = layer(TOKENS) + (layer(QUERIES + TOKENS) if fusion == "prefix" else layer(TOKENS) + cross)
    assert one["decoder"] - without["decoder"] == text + image
    assert three["decoder"] - without["decoder"] == 3 * text + image
    assert {**three, "decoder": 0} == {**without, "decoder": 0}


def test_two_towers_count_though_torch_would_fuse_them():
    model = ImageTextModel(PooledVit(), None, None, EMBEDDING, TorchTower())
    costs = model_costs(model, IMAGE, TOKENS)
    assert costs.flops == {
        "encoder": ENCODER,
        "text_encoder": layer(TOKENS),
        "image_projection": linear(1, WIDTH, EMBEDDING),
        "text_norm": 0,
        "text_projection": linear(1, WIDTH, EMBEDDING),
    }
    assert costs.parameters == parameter_counts(model)
    assert torch.backends.mha.get_fastpath_enabled()


class ViewsOfQueries(AttentionalPooler):
    """Hands a view of its own parameter to a module, as resamplers do."""

    def forward(self, patches: Tensor) -> BridgeOutput:
        self.query_norm(self.queries[None].expand(len(patches), -1, -1))
        return super().forward(patches)


def test_learned_queries_may_go_through_a_module():
    model = make_model()
    plain = model_costs(model, IMAGE, TOKENS)
    model.bridge = ViewsOfQueries(WIDTH, (2, 2), WIDTH, num_heads=2, num_queries=QUERIES)
    assert model_costs(model, IMAGE, TOKENS).flops["bridge"] == plain.flops["bridge"]


def test_precision_does_not_change_the_count():
    with torch.autocast("cpu", torch.bfloat16):
        halves = model_costs(make_model(), IMAGE, TOKENS)
    assert halves == model_costs(make_model(), IMAGE, TOKENS)


@pytest.mark.parametrize("fails", [False, True])
def test_counting_leaves_no_trace(monkeypatch, fails):
    """Not in the weights, the random numbers, what trains and what does not."""
    model = make_model(dropout=0.5).train()
    model.encoder.eval().requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()
    if fails:
        monkeypatch.setattr(model.bridge, "forward", lambda patches: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model_costs(model, IMAGE, TOKENS)
    else:
        model_costs(model, IMAGE, TOKENS)
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_training_step_takes_three_forwards_of_what_trains_and_one_of_what_is_frozen():
    model = make_model()
    costs = TrainingCosts(model_costs(model, IMAGE, 4), 4, model_costs(model, IMAGE, TOKENS), TOKENS)
    short, full = (sum(one.flops.values()) for one in (costs.short, costs.full))
    assert costs.flops(model, 1, 1, TOKENS) == pytest.approx(3 * full)
    assert costs.flops(model, 5, 5, 2 * TOKENS + 3 * 4) == pytest.approx(3 * (2 * full + 3 * short))
    image = sum(costs.full.flops[name] for name in ("encoder", "bridge", "image_projection"))
    assert costs.flops(model, 2, 0, 0) == pytest.approx(3 * 2 * image)
    # Nothing before the encoder trains; the bridge reads what does not train, and its own weights do.
    model.encoder.requires_grad_(False)
    assert costs.flops(model, 1, 0, 0) == pytest.approx(3 * image - 2 * costs.full.flops["encoder"])
    # A frozen decoder behind a bridge that trains has gradients of its inputs, and none of its weights.
    model.decoder.requires_grad_(False)
    both = costs.full.flops["encoder"], costs.full.flops["decoder"]
    assert costs.flops(model, 1, 1, TOKENS) == pytest.approx(3 * full - 2 * both[0] - both[1])
