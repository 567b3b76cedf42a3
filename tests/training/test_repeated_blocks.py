"""Blocks of every kind of part: found, run by their own forward only, the same checkpointed and compiled."""

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mmlm.core.batch import Batch
from mmlm.core.views import StepKey
from mmlm.experiment.build import build_model
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.training.gradients import backward
from mmlm.training.parallel import DDP, prepare
from mmlm.training.repeated_blocks import repeated_blocks
from mmlm.training.train_step import TrainStep
from tests.exactness.cells import SUMS, make_step, whole_batch
from tests.model.conftest import build_batch
from tests.model.grid.cells import VOCABULARY, composed, options

CPU = torch.device("cpu")
OWN = ("encoder=vit_small_images", "bridge=attentional_pooler", "decoder=transformer")
BLOCKS: Mapping[str, tuple[str, int]] = {
    "encoder=vit": ("Block", 12),
    "encoder=timm": ("Block", 12),
    "encoder=vit_small_images": ("Block", 4),
    "encoder=convnext_small_images": ("ConvNeXtStage", 4),
    "encoder=hf_vit_tiny": ("ViTLayer", 4),
    "bridge=attentional_pooler": ("", 0),
    "bridge=perceiver": ("ResamplerLayer", 2),
    "bridge=q_former": ("QFormerLayer", 2),
    "decoder=transformer": ("DecoderLayer", 2),
    "decoder=prefix": ("DecoderLayer", 2),
    "decoder=lstm": ("RecurrentLayer", 1),
    "decoder=gru": ("RecurrentLayer", 1),
    "decoder=gpt2_tiny": ("GPT2Block", 2),
    "decoder=mammut": ("DecoderLayer", 2),
    "decoder=genlip": ("DecoderLayer", 2),
    "decoder=llama_tiny": ("LlamaDecoderLayer", 2),
    "decoder=qwen_tiny": ("Qwen3DecoderLayer", 2),
    "decoder=smollm_tiny": ("SmolLM3DecoderLayer", 2),
    "text_encoder=transformer": ("DecoderLayer", 2),
    "text_encoder=clip_tiny": ("CLIPEncoderLayer", 2),
    "text_encoder=bert_tiny": ("BertLayer", 2),
    "text_encoder=siglip": ("SiglipEncoderLayer", 2),
    "text_encoder=bag_of_words": ("", 0),
}
"""What the part of an option is a stack of. A gated decoder has a block of ours before each layer besides."""


def make_step_of(*overrides: str, dropout: float = 0.0) -> TrainStep:
    """A training step of a composed model, contrastive and captioning; deterministic."""
    config = composed(*OWN, *overrides)
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    parts = {"contrastive": InfoNCE(0.3), "captioning": Captioning()}
    return TrainStep(model, WeightedSum(parts, dict.fromkeys(parts, 1.0))).train()


@pytest.fixture
def batch() -> Batch:
    """Four images and six captions, two of the same image."""
    return build_batch((5, 3, 7, 4, 6, 4), (0, 1, 1, 2, 0, 3), 4, 8, VOCABULARY, 32)


def gradients(step: TrainStep, batch: Batch, wrapper: nn.Module | None = None) -> dict[str, Tensor]:
    """The loss and every gradient, always with the same random numbers."""
    step.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    loss = backward(wrapper or step, [batch], StepKey())
    return {"loss": loss.total} | {name: p.grad for name, p in step.named_parameters() if p.grad is not None}


def test_every_option_is_looked_at():
    known = {*BLOCKS, *(f"decoder={name}" for name in options("decoder") if name.endswith("_gated"))}
    stacks = {f"{slot}={name}" for slot in ("encoder", "decoder", "text_encoder") for name in options(slot)}
    assert {name for name in stacks if "+" not in name} - known == {"decoder=none", "text_encoder=own"}


@pytest.mark.parametrize("option", BLOCKS)
def test_the_blocks_of_a_part(option):
    slot = option.split("=")[0]
    found = repeated_blocks(make_step_of(option).model.get_submodule(slot))
    name, count = BLOCKS[option]
    assert [type(block).__name__ for block in found] == [name] * count


@pytest.mark.parametrize("option", [name for name in options("decoder") if name.endswith("_gated")])
def test_a_gated_decoder_has_blocks_of_two_kinds(option):
    found = repeated_blocks(make_step_of(f"decoder={option}").model.decoder)
    kind = BLOCKS[f"decoder={option.removesuffix('_gated')}"][0]
    assert [type(block).__name__ for block in found] == [kind] * 2 + ["GatedCrossAttention"] * 2


def test_a_stack_of_bare_layers_is_no_stack_of_blocks():
    block = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    model = nn.ModuleDict(
        {
            "mlp": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "mixed": nn.Sequential(block, nn.Linear(2, 2)),
            "empty": nn.ModuleList(),
            "deep": nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(block)])}),
        }
    )
    assert repeated_blocks(model) == [model["deep"]["layers"][0]]


EVERY = [*BLOCKS, *(f"decoder={name}" for name in options("decoder") if name.endswith("_gated"))]


@pytest.mark.parametrize("option", EVERY)
@torch.no_grad()
def test_weights_are_used_inside_their_block_s_own_forward_only(option, batch):
    """Sharded weights are there in that time only: outside of it they are not a number here."""
    step = make_step_of(option)
    expected = step(batch, StepKey()).total
    called = dict.fromkeys(repeated_blocks(step.model), 0)
    for block in called:
        own = {parameter: parameter.data for parameter in block.parameters()}

        def spoil(module: nn.Module, *_: object, own: Mapping[nn.Parameter, Tensor] = own) -> None:
            for parameter, data in own.items():
                parameter.data = torch.full_like(data, torch.nan)

        def restore(module: nn.Module, *_: object, own: Mapping[nn.Parameter, Tensor] = own) -> None:
            called[module] += 1
            for parameter, data in own.items():
                parameter.data = data

        block.register_forward_pre_hook(restore)
        block.register_forward_hook(spoil)
        spoil(block)
    assert torch.equal(step(batch, StepKey()).total, expected)
    assert all(called.values())


@pytest.mark.parametrize("option", EVERY)
def test_activation_checkpointing_changes_nothing_but_what_is_kept(option, batch):
    plain, step = make_step_of(option, dropout=0.2), make_step_of(option, dropout=0.2)
    prepared = prepare(step, DDP(), CPU, activation_checkpointing=True)
    assert prepared is step
    assert list(step.state_dict()) == list(plain.state_dict())
    calls = [0]
    for part in (part for block in repeated_blocks(step.model) for part in block.modules()):
        if not any(part.children()):
            part.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    expected, found = gradients(plain, batch), gradients(step, batch)
    twice, calls[0] = calls[0], 0
    with torch.no_grad():
        step(batch, StepKey())
    assert 1.5 * calls[0] < twice <= 2 * calls[0]  # what makes nothing that backward needs is left out
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_activation_checkpointing_leaves_decoding_alone(batch):
    step = make_step_of("decoder=gpt2_tiny").eval()
    tokens = batch.tokens[:4, :3]

    def decoded() -> Tensor:
        cache = step.model.start_decoding(step.model.encode_image(batch.images))
        return torch.cat([step.model.decode(tokens[:, i : i + 1], cache) for i in range(3)], dim=1)

    expected = decoded()
    prepare(step, DDP(), CPU, activation_checkpointing=True)
    assert torch.equal(decoded(), expected)


def lengths_of(count: int) -> Batch:
    """A batch of ``cells.whole_batch`` with fewer images, and so captions of other lengths."""
    return whole_batch().split(count)[0]


BY_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
"""What it looks at is none of ours."""


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@BY_DYNAMO
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_compiled_training_step_is_the_same_at_any_length(activation_checkpointing, monkeypatch):
    """Captured by Dynamo and run as captured: the C++ compiler has ``test_compiled.py``. With dropout."""
    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, options: compile_(forward, backend="eager"))
    plain, step = (make_step(SUMS["coca"], torch.float32) for _ in range(2))
    for module in itertools.chain(plain.modules(), step.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    names = list(step.state_dict())
    prepare(step, DDP(), CPU, activation_checkpointing, compiled=True)
    assert list(step.state_dict()) == names
    graphs = torch._dynamo.utils.counters["stats"]
    for count in (8, 3, 5):
        close(gradients(step, lengths_of(count)), gradients(plain, lengths_of(count)))
    captured = graphs["unique_graphs"]
    assert captured >= 3  # a layer of the encoder, one of the decoder without and one with cross-attention
    for count in (6, 4, 7):
        gradients(step, lengths_of(count))
    assert graphs["unique_graphs"] == captured  # lengths are free by now
    step.eval()
    with torch.no_grad():
        step.model.encode_image(whole_batch().images)
    assert graphs["unique_graphs"] == captured
