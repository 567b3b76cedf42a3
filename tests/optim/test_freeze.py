"""What a plan freezes, keeps out of the backward pass and leaves untouched, and when it lets go again."""

import pytest
import torch
from torch import nn

from mmlm.checkpoints.checkpoint import load_checkpoint
from mmlm.core.batch import Batch, Caption
from mmlm.core.errors import UserError
from mmlm.core.views import StepKey
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.experiment import build_experiment
from mmlm.experiment.saved_run import load_run
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageTextModel
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from mmlm.optim.freeze import FreezePlan, check_plan, selects
from mmlm.optim.lora import Lora
from mmlm.optim.optimizers import AdamW, Muon, carry_state
from mmlm.training.gradients import backward
from mmlm.training.train_step import TrainStep

STEPS = 10


def make_model(tie_weights: bool = True) -> ImageTextModel:
    torch.manual_seed(0)
    encoder = TimmVit(16, width=16, depth=2, num_heads=2, patch_size=8, drop_path=0.5)
    bridge = AttentionalPooler(encoder.width, encoder.grid, 16, num_heads=2, num_queries=2)
    decoder = TransformerDecoder(
        20, 16, width=16, num_heads=2, max_tokens=6, dropout=0.5, tie_weights=tie_weights, unimodal_layers=2
    )
    return ImageTextModel(encoder, bridge, decoder, embedding_width=8)


def make_step(plan: FreezePlan, model: ImageTextModel | None = None) -> TrainStep:
    model = model or make_model()
    plan.add_adapters(model)
    check_plan(plan, model, STEPS)
    parts = {"contrastive": InfoNCE(), "captioning": Captioning()}
    return TrainStep(model, WeightedSum(parts, dict.fromkeys(parts, 1.0)), plan)


def make_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.arange(3)
    return Batch(
        images=torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator),
        tokens=torch.randint(3, 20, (3, 5), generator=generator),
        lengths=torch.tensor([5, 4, 5]),
        image_index=keys,
        image_concept=keys,
        caption_concept=keys,
        caption_key=keys,
        ids=("a", "b", "c"),
        captions=(Caption("a"), Caption("b"), Caption("c")),
        corrupt=(),
    )


def trained_names(step: TrainStep) -> set[str]:
    return {name for name, p in step.model.named_parameters() if p.requires_grad}


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def one_step(step: TrainStep, optimizer) -> None:
    backward(step, (make_batch(),), StepKey())
    optimizer.step()
    optimizer.zero_grad()


# Names


@pytest.mark.parametrize(
    ("entries", "name", "expected"),
    [
        (["encoder"], "encoder.vit.norm.weight", True),
        (["encoder"], "encoder", True),
        (["encoder"], "encoders.vit", False),
        (["encoder.vit.blocks.1"], "encoder.vit.blocks.1.norm1.weight", True),
        (["encoder.vit.blocks.1"], "encoder.vit.blocks.10.norm1.weight", False),
        (["*"], "bridge.queries", True),
        (["*.norm"], "encoder.vit.norm.weight", True),
        (["text_norm.*"], "text_norm.weight", True),
        ([], "encoder", False),
    ],
)
def test_names_and_patterns(entries, name, expected):
    assert selects(entries, name) is expected


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            FreezePlan(frozen=["encodr"]),
            "freeze.frozen: the model has no 'encodr' with weights; did you mean 'encoder'?",
        ),
        (FreezePlan(frozen=["encoder.vit.block.1"]), "encoder.vit has no 'block' with weights; did you mean 'blocks'?"),
        (FreezePlan(frozen=["decoder.lm"]), "decoder has no 'lm' with weights; there are: head, multimodal_layers,"),
        (
            FreezePlan(frozen=["decoder.lm"]),
            "; only a Hugging Face decoder has a language model inside: use decoder=gpt2_tiny or decoder=hugging_face",
        ),
        (
            FreezePlan(frozen=["text_encoder"]),
            "freeze.frozen: the model has no 'text_encoder' with weights; there are: bridge, decoder, encoder, image_",
        ),
        (FreezePlan(frozen=["text_encoder"]), "text_projection; use for example text_encoder=transformer"),
        (
            FreezePlan(frozen=["*.nothing"]),
            "freeze.frozen: '*.nothing' matches nothing with weights; the parts are: enc",
        ),
        (FreezePlan(frozen=["*"], trainable=["bridg"]), "freeze.trainable: the model has no 'bridg' with weights; did"),
        (FreezePlan(frozen=["encoder"], unfreeze={"encodr": 2}), "freeze.unfreeze: the model has no 'encodr'"),
        (FreezePlan(frozen=["encoder"], unfreeze={"bridge": 2}), "freeze.unfreeze.bridge: changes nothing at step 2"),
        (
            FreezePlan(frozen=["encoder"], unfreeze={"encoder": 2, "encoder.vit.norm": 4}),
            "freeze.unfreeze.encoder.vit.norm: changes nothing at step 4",
        ),
        (FreezePlan(frozen=["encoder"], unfreeze={"encoder": 10}), "step 10 is never made; train.steps is 10"),
        (FreezePlan(layer_decay={"encodr": 0.5}), "freeze.layer_decay: the model has no 'encodr'"),
        (FreezePlan(layer_decay={"enc*": 0.5}), "'enc*' must be the name of a part, not a pattern"),
        (FreezePlan(layer_decay={"bridge": 0.5}), "freeze.layer_decay.bridge: 'bridge' is no stack of layers"),
        (FreezePlan(layer_decay={"encoder": 0.5, "encoder.vit": 0.5}), "another entry covers it"),
        (FreezePlan(frozen=["encoder"], layer_decay={"encoder": 0.5}), "'encoder' never trains; leave it out"),
        (FreezePlan(frozen=["*"]), "freeze.frozen: nothing of the model is left to train"),
        (FreezePlan(lora=Lora(["encodr"])), "freeze.lora.parts: the model has no 'encodr'"),
        (FreezePlan(lora=Lora(["text_norm"])), "no linear layer in text_norm to put adapters on"),
        (
            FreezePlan(lora=Lora(["encoder"], target=["*.query"])),
            "freeze.lora.target: '*.query' is the name of no linear layer in encoder; their last names are: fc1, fc2,",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan, message):
    with pytest.raises(UserError) as refused:
        make_step(plan)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": ["encoder"], "unfreeze": {"encoder": 0}}, r"^unfreeze\.encoder: 0 must be at least 1"),
        ({"layer_decay": {"encoder": 1.0}}, r"^layer_decay\.encoder: 1\.0 must lie between 0 and 1"),
        ({"trainable": ["encoder"]}, r"^trainable: has no effect, for nothing is frozen"),
        ({"unfreeze": {"encoder": 3}}, r"^unfreeze: has no effect, for nothing is frozen"),
    ],
)
def test_settings_out_of_range_or_without_effect(settings, message):
    with pytest.raises(UserError, match=message):
        FreezePlan(**settings)


# Frozen


def test_nothing_is_frozen_without_a_plan():
    step = make_step(FreezePlan())
    assert all(p.requires_grad for p in step.parameters())
    assert all(module.training for module in step.modules())
    assert not step.learning_rate_scales()


def test_what_is_frozen_gets_no_gradient_no_optimizer_state_and_keeps_its_bytes():
    step = make_step(FreezePlan(frozen=["encoder", "decoder.unimodal_layers.0"]))
    before = state_of(step)
    optimizer = Muon(lr=0.1, weight_decay=0.1)(step)
    for _ in range(3):
        one_step(step, optimizer)
    changed = {name for name, tensor in step.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = ("model.encoder.", "model.decoder.unimodal_layers.0.")
    assert not any(name.startswith(frozen) for name in changed)
    expected = {name for name, _ in step.named_parameters() if not name.startswith(frozen)}
    # The bias of keys moves all scores of a query alike: its gradient is rounding error.
    assert expected - changed == set()
    held = {id(p) for member in (optimizer.first, optimizer.second) for p in member.state}
    assert held == {id(p) for name, p in step.named_parameters() if not name.startswith(frozen)}
    assert all(p.grad is None for p in step.parameters())


def test_there_is_no_graph_where_nothing_that_trains_lies_upstream():
    batch = make_batch()
    step = make_step(FreezePlan(frozen=["encoder"]))
    tokens = step.model.encoder(batch.images).tokens
    assert tokens.requires_grad is False
    assert step.model.bridge(tokens).memory.requires_grad
    assert make_step(FreezePlan()).model.encoder(batch.images).tokens.requires_grad
    # A frozen part behind one that trains passes gradients on.
    step = make_step(FreezePlan(frozen=["decoder"]))
    backward(step, (batch,), StepKey())
    assert step.model.bridge.queries.grad.abs().sum() > 0
    assert all(p.grad is None for p in step.model.decoder.parameters())


def test_what_is_frozen_stays_in_eval_mode_and_computes_the_same():
    step = make_step(FreezePlan(frozen=["encoder"])).train()
    assert not any(module.training for module in step.model.encoder.modules())
    assert all(module.training for module in step.model.bridge.modules())
    assert step.model.decoder.unimodal_layers[0].dropout.training
    images = make_batch().images
    first = step.model.encoder(images).tokens
    assert torch.equal(first, step.model.encoder(images).tokens)
    assert not step.eval().model.bridge.training
    step.train()
    assert step.model.bridge.training
    assert not step.model.encoder.training
    free = make_step(FreezePlan()).train().model.encoder
    assert not torch.equal(free(images).tokens, free(images).tokens), "drop path"


def test_a_part_may_be_frozen_partly():
    plan = FreezePlan(frozen=["encoder.vit.blocks.0", "decoder"], trainable=["decoder.multimodal_layers"])
    step = make_step(plan).train()
    blocks = step.model.encoder.vit.blocks
    assert [any(m.training for m in block.modules()) for block in blocks] == [False, True]
    assert blocks[1].drop_path1.training
    assert step.model.encoder.training
    assert step.model.decoder.training
    assert not step.model.decoder.unimodal_layers[0].dropout.training
    assert step.model.decoder.multimodal_layers[0].dropout.training
    names = trained_names(step)
    assert not any(name.startswith("encoder.vit.blocks.0.") for name in names)
    assert {name.split(".")[1] for name in names if name.startswith("decoder.")} == {"multimodal_layers"}


def test_dropout_without_parameters_is_frozen_by_its_name():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = nn.ModuleDict({"drop": nn.Dropout(0.5), "gated": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))})
            self.lm["body"] = nn.Linear(2, 2)

    model = Wrapped()
    plan = FreezePlan(frozen=["lm"], trainable=["*gated*"])
    in_eval = plan.modules_in_eval(model, 0)
    assert in_eval == [model.lm["drop"], model.lm["body"]]


@pytest.mark.parametrize("name", ["decoder.head", "decoder.token_embedding"])
def test_a_shared_tensor_is_frozen_by_any_of_its_names(name):
    step = make_step(FreezePlan(frozen=[name]))
    assert not step.model.decoder.head.weight.requires_grad
    step = make_step(FreezePlan(frozen=[name]), make_model(tie_weights=False))
    assert [step.model.decoder.head.weight.requires_grad, step.model.decoder.token_embedding.weight.requires_grad] == [
        name != "decoder.head",
        name == "decoder.head",
    ]


def test_what_a_part_made_untrainable_itself_stays_so():
    model = make_model()
    model.encoder.vit.pos_embed.requires_grad_(False)
    plan = FreezePlan(frozen=["encoder"], unfreeze={"encoder": 3})
    step = make_step(plan, model)
    assert step.freeze_for(3)
    assert not model.encoder.vit.pos_embed.requires_grad
    assert model.encoder.vit.norm.weight.requires_grad or model.encoder.vit.fc_norm.weight.requires_grad


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)

    def forward(self, batch, views):
        return self.head(self.encoder(batch).mean(dim=(2, 3)))


def test_batch_norms_are_refused_where_they_train_and_keep_their_statistics_where_they_do_not():
    with pytest.raises(UserError, match=r"encoder: it has a trainable batch norm \(encoder\.1\), .* freeze=lit,"):
        check_plan(FreezePlan(), Normed(), STEPS)
    with pytest.raises(UserError, match="trainable batch norm"):
        check_plan(FreezePlan(frozen=["encoder"], unfreeze={"encoder": 3}), Normed(), STEPS)
    plan, model = FreezePlan(frozen=["encoder"]), Normed()
    check_plan(plan, model, STEPS)
    before = state_of(model.encoder)
    step = TrainStep(model, nn.Identity(), plan).train()
    optimizer = AdamW()(step)
    step.model(torch.randn(4, 3, 8, 8), ()).sum().backward()
    optimizer.step()
    after = model.encoder.state_dict()
    assert after["1.num_batches_tracked"] == 0
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_optimizer_without_a_parameter_is_refused():
    with pytest.raises(UserError, match=r"freeze\.frozen: no parameter is left to train"):
        AdamW()(nn.Linear(2, 2).requires_grad_(False))


# Unfreezing


def test_unfreezing_is_a_function_of_the_step_and_says_whether_it_changed_something():
    step = make_step(FreezePlan(frozen=["encoder"], unfreeze={"encoder.vit.blocks.1": 2, "encoder": 4})).train()
    encoder = {name for name, _ in step.model.named_parameters() if name.startswith("encoder.")}
    last = {name for name in encoder if name.startswith("encoder.vit.blocks.1.")}
    seen, changes = {}, {}
    for at in (0, 1, 2, 3, 4, 9, 0, 2):
        changes[at] = step.freeze_for(at)
        seen[at] = trained_names(step) & encoder
        assert step.model.encoder.vit.blocks[1].training is (at >= 2)
        assert step.model.encoder.vit.blocks[0].training is (at >= 4)
    assert seen == {0: set(), 1: set(), 2: last, 3: last, 4: encoder, 9: encoder}
    assert changes == {0: True, 1: False, 2: True, 3: False, 4: True, 9: False}


@pytest.mark.parametrize("optim", [AdamW(lr=0.01), Muon(lr=0.01)])
def test_a_rebuilt_optimizer_goes_on_with_the_state_of_what_trained_before(optim):
    step = make_step(FreezePlan(frozen=["encoder", "decoder"], unfreeze={"encoder": 2}))
    old = optim(step)
    one_step(step, old)
    kept = {id(p): state for member in members(old) for p, state in member.state.items()}
    step.freeze_for(2)
    new = carry_state(old, optim(step))
    carried = {id(p): state for member in members(new) for p, state in member.state.items()}
    assert carried == kept
    one_step(step, new)
    counts = {
        name: member.state[p]["step"].item()
        for member in members(new)
        for name, p in step.named_parameters()
        if p in member.state and "step" in member.state[p]
    }
    assert {count for name, count in counts.items() if name.startswith("model.encoder.")} == {1}
    assert {count for name, count in counts.items() if not name.startswith("model.encoder.")} == {2}


def members(optimizer) -> list[torch.optim.Optimizer]:
    return [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else [optimizer.first, optimizer.second]


def test_muon_without_hidden_matrices_is_adamw_alone():
    step = make_step(FreezePlan(frozen=["*"], trainable=["text_projection", "image_projection"]))
    assert isinstance(Muon()(step), torch.optim.AdamW)
    step = make_step(FreezePlan(frozen=["*"], trainable=["bridge.attention.query"]))
    step.objective.objectives["contrastive"].logit_scale.requires_grad_(False)
    step.model.bridge.attention.query.bias.requires_grad_(False)
    assert isinstance(Muon()(step), torch.optim.Muon)


# Whole runs

RUN = ("transform=augment", "decoder.dropout=0.1", "encoder.drop_path=0.2", "train.ema_decay=0.9")


def weights_at(folder, step: int, group: str = "model") -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / "checkpoints" / f"step={step:06d}").weights[group])


def changed_parts(before, after) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}


def test_a_run_leaves_what_is_frozen_as_it_was(trained, tiny_config, tmp_path):
    folder = trained(*RUN, "freeze=lit", "optim=muon")
    start = state_of(build_experiment(tiny_config(*RUN, "freeze=lit"), tmp_path / "x").state.train_step)
    for group in ("model", "ema"):
        parts = changed_parts(start, weights_at(folder, 3, group))
        assert "model.encoder" not in parts
        assert {"model.bridge", "model.decoder", "model.image_projection"} <= parts


def test_the_header_says_how_much_trains(train_tiny):
    outcome = train_tiny("freeze=lit", "+freeze.unfreeze={encoder.vit.blocks.0: 2}")
    assert "M parameters; encoder.vit.blocks.0 from step 2 on" in " ".join(outcome.out.split())


def test_the_cell_check_knows_the_plan(tiny_config):
    check_compatible(tiny_config("freeze=lit"))
    check_compatible(tiny_config("freeze=bridge_only"))
    check_compatible(tiny_config("freeze=lora"))
    check_compatible(tiny_config("freeze=llrd"))
    with pytest.raises(UserError, match="use for example text_encoder=transformer"):
        check_compatible(tiny_config("freeze=text_locked"))
    with pytest.raises(UserError, match=r"decoder has no 'lm' with weights; .* decoder=hugging_face"):
        check_compatible(tiny_config("freeze=lm_frozen"))
    with pytest.raises(UserError, match="step 3 is never made"):
        check_compatible(tiny_config("freeze=lit", "+freeze.unfreeze.encoder=3"))


def test_bridge_only_trains_bridge_and_projections(tiny_config, tmp_path):
    step = build_experiment(tiny_config("freeze=bridge_only"), tmp_path / "x").state.train_step
    assert {name.split(".")[0] for name in trained_names(step)} == {
        "bridge",
        "image_projection",
        "text_norm",
        "text_projection",
    }


def test_a_run_with_adapters_trains_them_alone_and_comes_back(trained):
    folder = trained("freeze=lora", "optim=muon", "train.save_every=1", "train.keep_last=9")
    first, last = weights_at(folder, 1), weights_at(folder, 3)
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    adapted = {name for name in changed if name.startswith(("model.encoder.", "model.decoder."))}
    assert adapted == {name for name in first if ".lora_" in name}
    run = load_run(str(folder), torch.device("cpu"))
    assert all(torch.equal(value, last[f"model.{name}"]) for name, value in run.model.state_dict().items())
