"""What the three slots for models of transformers share: names in packages, vocabularies, errors in one line."""

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

from mmlm.core.errors import UserError
from mmlm.model.decoders.hugging_face import HuggingFaceDecoder
from mmlm.model.encoders.hugging_face import HuggingFaceVision
from mmlm.model.hugging_face_loading import check_source, fit_vocabulary, one_line_errors
from mmlm.model.text_encoders.hugging_face import HuggingFaceText

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
V = 11
NAME = "package:some_weights/model"


def tiny_models() -> dict[str, torch.nn.Module]:
    return {
        "encoder": ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=8), add_pooling_layer=False),
        "text_encoder": BertModel(BertConfig(**SIZES, vocab_size=V), add_pooling_layer=False),
        "decoder": GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=32, vocab_size=V)),
    }


def part(slot: str, name: str, load_weights: bool = True) -> torch.nn.Module:
    """The slot's part with the model of that name inside."""
    if slot == "encoder":
        return HuggingFaceVision(16, name_or_path=name, load_weights=load_weights)
    if slot == "text_encoder":
        return HuggingFaceText(V, 8, name_or_path=name, load_weights=load_weights)
    return HuggingFaceDecoder(V, 8, 2, 8, name_or_path=name, load_weights=load_weights)


INSIDE = {"encoder": "tower", "text_encoder": "text_model", "decoder": "lm"}


@pytest.mark.parametrize("slot", INSIDE)
def test_a_model_in_a_package_is_loaded_and_its_vocabulary_keeps_the_name(package, slot):
    torch.manual_seed(0)
    saved = tiny_models()[slot]
    saved.save_pretrained(package / "model")
    loaded = part(slot, NAME)
    inside = loaded.get_submodule(INSIDE[slot])
    assert inside.training
    for name, value in inside.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name
    assert getattr(loaded, "vocabulary", NAME) == NAME
    with torch.device("meta"):
        part(slot, NAME, load_weights=False)


@pytest.mark.parametrize("slot", INSIDE)
def test_a_name_that_leads_nowhere_is_refused_by_its_key(package, slot):
    key = "^name_or_path: "
    with pytest.raises(UserError, match=key + "the package some_weights holds no 'model'$"):
        part(slot, NAME)
    with pytest.raises(UserError, match=key + "there is no folder './not/here'; give one, or a name on the hub$"):
        part(slot, "./not/here")
    (package / "model").mkdir()
    with pytest.raises(UserError, match=key + f"'{NAME}' cannot be loaded: ") as caught:
        part(slot, NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slot", INSIDE)
def test_only_safetensors_are_read_and_nothing_starts_at_random(package, slot):
    model, folder = tiny_models()[slot], package / "model"
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"^name_or_path: '{NAME}' cannot be loaded: "):
        part(slot, NAME)
    state = model.state_dict()
    gone = next(name for name in state if "attn" in name or "attention" in name)
    model.save_pretrained(folder, state_dict={name: value for name, value in state.items() if name != gone})
    with pytest.raises(UserError, match=rf"^name_or_path: '{NAME}' has no weights for .*; they would start"):
        part(slot, NAME)


@pytest.mark.parametrize("slot", ["text_encoder", "decoder"])
def test_new_rows_are_the_mean_of_the_old_with_a_head_and_without(slot):
    model = tiny_models()[slot]
    old = model.get_input_embeddings().weight.detach().clone()
    fit_vocabulary(model, V + 2)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        if embedding is not None:
            assert torch.equal(embedding.weight[:V], old)
            torch.testing.assert_close(embedding.weight[V:], old.mean(dim=0).expand(2, -1))
            assert embedding.weight.requires_grad
    fit_vocabulary(model, V)
    assert len(model.get_input_embeddings().weight) == V + 2
    assert model.get_input_embeddings().padding_idx is None


def test_exactly_one_source_is_given():
    check_source("a", None)
    check_source(None, "a")
    for both in ((None, None), ("a", "b")):
        with pytest.raises(UserError, match=r"^name_or_path: .* and architecture=.*: set exactly one; "):
            check_source(*both)


def test_errors_of_a_library_are_told_in_one_line_and_ours_pass():
    with pytest.raises(UserError, match=r"^key: first$"), one_line_errors("key"):
        raise ValueError("\n  first\nsecond")
    with pytest.raises(UserError, match=r"^key: AssertionError$"), one_line_errors("key"):
        raise AssertionError
    with pytest.raises(UserError, match=r"^ours$"), one_line_errors("key"):
        raise UserError("ours")
