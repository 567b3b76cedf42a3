"""SigLIP's text tower, as transformers has it: it reads texts that are filled up to one length."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, SiglipTextConfig, SiglipTextModel

from mmlm.core.errors import ArgumentError, UserError
from mmlm.model.hugging_face_loading import (
    change_config,
    check_source,
    new_config,
    pretrained_model,
    random_model,
    saved_config,
)
from mmlm.model.packing import Layout

_SUPPLIED = dict.fromkeys(("dtype", "attn_implementation"), "is decided by the run; remove it")
"""Config values that ``settings`` may not set, and how the error message ends if it does."""


class SiglipText(nn.Module):
    """The text tower of SigLIP (arXiv:2303.15343) and SigLIP 2 (arXiv:2502.14786) of one resolution.

    It differs from CLIP's in three ways: a text has no start token; it is filled up to the tower's length with the
    padding id, and every token sees all others, padding included; the state at the last position, which is padding in
    all but the longest texts, goes through a linear layer and is the embedding. So the model needs no projection
    (``model.embedding_width=null``).

    Args:
        vocab_size: ids of the run's tokenizer. The tower has rows for the ids of texts, the end and ``padding_id``; a
            start or padding of the run's own is never read.
        max_tokens: longest text, start and end included: at most one more than the tower's length.
        name_or_path: pretrained model on the hub or in a folder (safetensors only, and none of its code is run); or
        settings: values of transformers' ``SiglipTextConfig`` to start from random weights: sizes, ``hidden_act``;
            without ``vocab_size`` there is a row for each id of the tokenizer.
        padding_id: what fills a text: 1 in SigLIP, 0 in SigLIP 2.
        load_weights: false builds a pretrained model from its config, with random weights.

    Raises:
        UserError: a model that cannot be loaded or is none of SigLIP, a setting it does not have, texts that are longer
            than its positions, or more ids than it has rows.
    """

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        name_or_path: str | None = None,
        settings: Mapping[str, object] | None = None,
        padding_id: int = 1,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        check_source(name_or_path, None if name_or_path is not None else SiglipTextConfig.model_type)
        self.vocabulary = name_or_path
        if name_or_path is None:
            config: PreTrainedConfig = new_config(
                SiglipTextConfig, {"vocab_size": vocab_size} | dict(settings or {}), _SUPPLIED, _NO_IDS
            )
        else:
            config = saved_config(name_or_path).get_text_config()
            if not isinstance(config, SiglipTextConfig):
                raise ArgumentError(
                    f"name_or_path: '{name_or_path}' is a {config.model_type}, which is no SigLIP of one resolution"
                )
            change_config(config, settings or {}, _SUPPLIED)
        assert isinstance(config, SiglipTextConfig), "new_config makes one of the class that it is given"
        config.dtype = torch.float32
        if name_or_path is not None and load_weights:
            self.text_model = pretrained_model(name_or_path, partial(SiglipTextModel.from_pretrained, config=config))
        else:
            self.text_model = random_model(config, partial(SiglipTextModel, config))
        self.length, self.padding_id, self.width = config.max_position_embeddings, padding_id, config.projection_size
        if max_tokens > self.length + 1:
            raise UserError(
                f"data.max_tokens: {max_tokens} is more than the {self.length} positions of SigLIP's text tower and a "
                f"start, which it does not read; use at most {self.length + 1}"
            )
        if not 0 <= padding_id < config.vocab_size:
            raise ArgumentError(f"padding_id: {padding_id} is none of the tower's {config.vocab_size} ids")
        if vocab_size - _OWN_IDS > config.vocab_size:
            raise UserError(
                f"tokenizer: it has {vocab_size} ids and the text encoder rows for {config.vocab_size}; use the "
                "tokenizer that its weights go with"
            )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64[C, T], int64[C] -> float[C, D]: the embedding, not of unit length."""
        real = Layout.mask(lengths, tokens.shape[1])[:, 1:]
        read = tokens[:, 1:].masked_fill(~real, self.padding_id)
        filled = nn.functional.pad(read, (0, self.length - read.shape[1]), value=self.padding_id)
        return self.text_model(input_ids=filled).pooler_output

    def places(self, lengths: Tensor, num_tokens: int) -> int:
        """See ``mmlm.model.text_places.CountsPlaces``: every text takes the tower's length, as in SigLIP."""
        return len(lengths) * self.length


_NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
"""Special ids of the config, which the tower does not read."""
_OWN_IDS = 2
"""Ids that a tokenizer of ours adds behind a vocabulary without a start and a padding of its own."""
