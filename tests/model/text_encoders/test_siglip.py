"""SigLIP's text tower: a text is filled to its length without its start, and what does not fit is refused."""

import pytest
import torch
from transformers import BertConfig, BertModel, SiglipConfig, SiglipModel

from mmlm.core.errors import UserError
from mmlm.model.text_encoders.siglip import SiglipText

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 7,
    "projection_size": 12,
}


def test_a_text_is_read_without_its_start_and_filled_to_the_tower_s_length():
    tower = SiglipText(30, 8, settings=SIZES, padding_id=4).eval()
    expected = tower.text_model(input_ids=torch.tensor([[7, 9, 2, 4, 4, 4, 4], [7, 2, 4, 4, 4, 4, 4]])).pooler_output
    lengths = torch.tensor([4, 3])
    for start, padding, width in ((1, 0, 4), (29, 5, 8)):
        tokens = torch.full((2, width), padding)
        tokens[0, :4], tokens[1, :3] = torch.tensor([start, 7, 9, 2]), torch.tensor([start, 7, 2])
        torch.testing.assert_close(tower(tokens, lengths), expected)
    assert tower.width == expected.shape[1] == 12


def test_a_pretrained_tower_is_loaded_whole(tmp_path):
    text = SIZES | {"vocab_size": 30, "projection_size": 16}
    vision = {
        key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    saved = SiglipModel(SiglipConfig(text_config=text, vision_config=vision | {"image_size": 16, "patch_size": 8}))
    saved.save_pretrained(tmp_path)
    tower = SiglipText(32, 8, name_or_path=str(tmp_path))
    for name, tensor in saved.text_model.state_dict().items():
        assert torch.equal(tower.text_model.state_dict()[name], tensor), name
    assert tower.vocabulary == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 9}, r"^data\.max_tokens: 9 is more than the 7 positions of SigLIP's text tower and a start"),
        ({"padding_id": 30}, r"^padding_id: 30 is none of the tower's 30 ids"),
        ({"settings": SIZES | {"vocab_size": 27}}, r"^tokenizer: it has 30 ids and the text encoder rows for 27; use"),
        ({"settings": {"hidden_sise": 3}}, r"^settings\.hidden_sise: siglip_text_model has no such setting"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        SiglipText(**({"vocab_size": 30, "max_tokens": 8, "settings": SIZES} | arguments))


def test_another_model_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=30)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a bert, which is no SigLIP of one resolution"):
        SiglipText(30, 8, name_or_path=str(tmp_path))
