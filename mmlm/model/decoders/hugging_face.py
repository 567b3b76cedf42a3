"""Any causal language model of transformers as the decoder, with the image as a prefix or by gated cross-attention."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.ranges import check_ratio
from mmlm.model.attention import AttentionRecord
from mmlm.model.blocks import init_linears
from mmlm.model.decoders.gated_cross_attention import GatedCrossAttention, Memory, reading
from mmlm.model.decoders.language_model import (
    backbone,
    cache_argument,
    check_language_model,
    layers_of,
    make_language_model,
    makes_attention_explicit,
)
from mmlm.model.decoders.language_model_cache import LanguageModelCache, empty_layers
from mmlm.model.hugging_face_loading import fit_vocabulary
from mmlm.model.packing import rows_of
from mmlm.model.protocols import Fusion, TextStates


class HuggingFaceDecoder(nn.Module):
    """A causal language model (LM) of transformers, pretrained or with random weights, that reads the bridge's memory.

    ``fusion`` says how: as a ``prefix`` of embeddings in front of the text's (LLaVA, arXiv:2304.08485; projected if the
    memory has another width), or by ``gated_cross_attention`` before its layers (Flamingo, arXiv:2204.14198). Either
    way a text-only caption, and every caption in ``text``, gets exactly the LM's own pass without an image.

    No attention mask is passed. Captions are padded on the right, where causal attention does not see the padding. The
    prefix of a text-only caption is put behind its text, where no token attends to it and it shifts no position.

    Args:
        vocab_size: ids of the run's tokenizer, V. A pretrained embedding and head with fewer rows get new ones, each
            the mean of the old rows; of a larger head only the first V rows are used.
        memory_width: width of the bridge's memory, Dm.
        num_memory: tokens of the memory, M.
        max_tokens: longest caption, start and end included.
        name_or_path: pretrained LM on the hub or in a folder (safetensors only), or ``package:NAME/folder``; or
        architecture: transformers' name (``model_type``) of an LM to start at random, such as ``llama``.
        settings: values of the LM's config that differ from its own, such as sizes, or a dropout of 0.
        fusion: how the memory enters: as a ``prefix`` or by ``gated_cross_attention``.
        cross_every: n puts a gated block before every n-th layer (1: before each); null is 1.
        cross_heads: attention heads of a gated block; null takes the LM's number.
        cross_mlp_ratio: hidden units of a gated block's feed-forward, in widths; null is 4.
        load_weights: false builds a pretrained LM from its config, with random weights.

    Raises:
        UserError: an LM that cannot be loaded, is no causal LM with ``hidden @ head.T`` as logits, or has too few
            positions for memory and caption; or a setting without effect.
    """

    takes_patterns = False

    def __init__(
        self,
        vocab_size: int,
        memory_width: int,
        num_memory: int,
        max_tokens: int,
        name_or_path: str | None = None,
        architecture: str | None = None,
        settings: Mapping[str, object] | None = None,
        fusion: Literal["prefix", "gated_cross_attention"] = "prefix",
        cross_every: int | None = None,
        cross_heads: int | None = None,
        cross_mlp_ratio: float | None = None,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        key = f"architecture={architecture}" if name_or_path is None else f"name_or_path={name_or_path}"
        self.lm = make_language_model(name_or_path, architecture, settings or {}, vocab_size, load_weights)
        check_language_model(self.lm, key)
        fit_vocabulary(self.lm, vocab_size)
        self.vocabulary, self.vocab_size, self.max_tokens = name_or_path, vocab_size, max_tokens
        self.fusion: Fusion = "prefix" if fusion == "prefix" else "cross_attention"
        self.width = self.text_width = self._head().weight.shape[1]
        # A prefix is read by the LM's own self-attention, and not every LM can return its weights (Falcon cannot).
        self.records_attention = fusion != "prefix" or makes_attention_explicit(self.lm)
        self.prefix_projection: nn.Linear | None = None
        self.gated_blocks = nn.ModuleList()
        if fusion == "prefix":
            _refuse(cross_every=cross_every, cross_heads=cross_heads, cross_mlp_ratio=cross_mlp_ratio)
            self._add_prefix(memory_width)
        else:
            self._add_gated_blocks(memory_width, cross_every, cross_heads, cross_mlp_ratio)
        _check_length(self.lm.config, max_tokens, num_memory if fusion == "prefix" else 0)

    def _head(self) -> nn.Linear:
        """The LM's output projection: no bias, weight float32[V or more, D] (see ``check_language_model``)."""
        return cast(nn.Linear, self.lm.get_output_embeddings())

    def _add_prefix(self, memory_width: int) -> None:
        """Builds the projection of the memory to the width of the LM's token embedding, if they differ."""
        # Some LMs embed tokens in another width than that of their layers.
        width = cast(nn.Embedding, self.lm.get_input_embeddings()).weight.shape[1]
        if memory_width != width:
            self.prefix_projection = nn.Linear(memory_width, width)
            with keyed_start("prefix_projection"):
                init_linears(self.prefix_projection)

    def _add_gated_blocks(
        self, memory_width: int, every: int | None, heads: int | None, mlp_ratio: float | None
    ) -> None:
        """Inserts gated blocks before the LM's layers. Raises UserError for settings that do not fit the LM."""
        config, layers = self.lm.config, layers_of(self.lm)
        every = 1 if every is None else every
        heads = config.num_attention_heads if heads is None else heads
        mlp_ratio = 4.0 if mlp_ratio is None else mlp_ratio
        if not 1 <= every <= len(layers):
            raise ArgumentError(f"cross_every: {every} must lie between 1 and the LM's {len(layers)} layers")
        if heads < 1 or config.hidden_size % heads:
            raise ArgumentError(f"cross_heads: {heads} does not divide the LM's width {config.hidden_size}")
        if mlp_ratio <= 0:
            raise ArgumentError(f"cross_mlp_ratio: {mlp_ratio} must be above 0, such as 4")
        check_ratio("cross_mlp_ratio", mlp_ratio, config.hidden_size)
        for number, layer in enumerate(layers[every - 1 :: every]):
            with keyed_start(f"gated_blocks.{number}"):
                block = GatedCrossAttention(config.hidden_size, heads, memory_width, mlp_ratio)
            block.insert_before(layer)
            self.gated_blocks.append(block)

    @property
    def head_weight(self) -> Tensor:
        """float32[V, D]: the output projection, without the rows that pad the LM's own vocabulary."""
        return self._head().weight[: self.vocab_size]

    def text(self, tokens: Tensor, lengths: Tensor) -> TextStates:
        """See ``Decoder``. A pass of the LM without any image; the pooled vector is the state at the end token."""
        self._check_length(tokens.shape[1])
        states = self._run(self._embed(tokens))
        pooled = states[torch.arange(len(states), device=states.device), lengths - 1]
        return TextStates(states, pooled)

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """See ``Decoder``. ``text`` is not used, since the image changes the LM's layers from the first one on."""
        inputs = tokens[:, :-1]
        self._check_length(inputs.shape[1])
        if self.fusion == "prefix":
            return self._hidden_after_prefix(inputs, lengths - 1, memory, image_index, record)
        with reading(self._blocks(), [Memory(memory, image_index, record)] * len(self.gated_blocks)):
            states = self._run(self._embed(inputs))
        return states[_between(states, torch.zeros_like(lengths), lengths - 1)]

    def _hidden_after_prefix(
        self, inputs: Tensor, lengths: Tensor, memory: Tensor, image_index: Tensor, record: AttentionRecord | None
    ) -> Tensor:
        """``hidden`` with the memory as a prefix, for inputs int64[C, T] of which ``lengths`` int64[C] are real."""
        embedded, num_memory = self._embed(inputs), memory.shape[1]
        prefix = rows_of(self._prefix(memory), image_index).to(embedded.dtype)
        together = torch.cat([prefix, embedded], dim=1)
        # Rotate the row of a text-only caption to [text, prefix]: its text then starts at position 0 and attends to no
        # prefix. ``start`` is the column of each caption's first token.
        start = num_memory * (image_index != TEXT_ONLY)
        places = torch.arange(together.shape[1], device=inputs.device)
        order = (places + num_memory - start[:, None]) % len(places)
        together = together.gather(1, order[..., None].expand_as(together))
        if record is None:
            states = self._run(together)
        else:
            states, weights = self._run_recording(together)
            # Rows from text to prefix. The columns of a text-only caption hold no prefix: its weights are 0.
            with_image = (image_index != TEXT_ONLY)[:, None, None, None]
            record.weights += [w[:, :, num_memory:, :num_memory].float() * with_image for w in weights]
        return states[_between(states, start, start + lengths)]

    def start_decoding(self, memory: Tensor, room: int | None = None) -> LanguageModelCache:
        """See ``Decoder``: a cache of the prefix, or an empty one with the gated blocks' keys and values."""
        room = self.max_tokens if room is None else room
        if self.fusion != "prefix":
            memories = [Memory(block.keys_values(memory)) for block in self._blocks()]
            return LanguageModelCache(empty_layers(self.lm.config, room), len(memory), memories)
        layers = empty_layers(self.lm.config, memory.shape[1] + room)
        self._run(self._prefix(memory).to(self.head_weight.dtype), layers)
        return LanguageModelCache(layers, len(memory))

    def decode(self, tokens: Tensor, cache: LanguageModelCache) -> Tensor:
        """See ``Decoder``."""
        self._check_length(cache.num_tokens + tokens.shape[1])
        cache.spread(len(tokens))
        with reading(self._blocks(), cache.memories):
            states = self._run(self._embed(tokens), cache.layers)
        cache.num_tokens += tokens.shape[1]
        return F.linear(states, self.head_weight)

    def _blocks(self) -> Sequence[GatedCrossAttention]:
        """The gated blocks; none with a prefix."""
        return cast(Sequence[GatedCrossAttention], self.gated_blocks)

    def _embed(self, tokens: Tensor) -> Tensor:
        """int64[C, T] -> token embeddings float[C, T, D]."""
        return self.lm.get_input_embeddings()(tokens)

    def _prefix(self, memory: Tensor) -> Tensor:
        """Memory float[B, M, Dm] -> prefix embeddings float[B, M, D]."""
        return memory if self.prefix_projection is None else self.prefix_projection(memory)

    def _run(self, embedded: Tensor, cache: Cache | None = None) -> Tensor:
        """Embeddings float[C, T, D] -> states float[C, T, D] after the last norm."""
        # The name of the cache's argument depends on the architecture and on the version of transformers.
        cached = {} if cache is None else {str(cache_argument(self.lm)): cache}
        return backbone(self.lm)(inputs_embeds=embedded, use_cache=cache is not None, **cached).last_hidden_state

    def _run_recording(self, embedded: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``_run`` that also returns each layer's self-attention weights float[C, H, T, T], for reports.

        Only the LM's explicit ("eager") attention returns weights; raises ValueError for an LM that cannot switch to
        it.
        """
        if not self.records_attention:
            raise ValueError(f"{type(self.lm).__name__} cannot return the weights of its attention")
        self.lm.set_attn_implementation("eager")
        try:
            output = backbone(self.lm)(inputs_embeds=embedded, use_cache=False, output_attentions=True)
        finally:
            self.lm.set_attn_implementation("sdpa")
        return output.last_hidden_state, output.attentions

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.max_tokens:
            raise ValueError(f"{num_tokens} tokens are more than the decoder's max_tokens {self.max_tokens}")


def _between(states: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """float[C, T, D], int64[C], int64[C] -> bool[C, T]: true in the columns from ``start`` to before ``end``."""
    places = torch.arange(states.shape[1], device=states.device)
    return (places >= start[:, None]) & (places < end[:, None])


def _refuse(**settings: object) -> None:
    """UserError for a setting of gated cross-attention that is set with ``fusion=prefix``."""
    for name, value in settings.items():
        if value is not None:
            raise ArgumentError(
                f"{name}: {value} does nothing with fusion=prefix; set it to null or fusion=gated_cross_attention"
            )


def _check_length(config: PreTrainedConfig, max_tokens: int, num_memory: int) -> None:
    """UserError if a caption and its prefix need more positions than the LM has."""
    # An LM without this value has no limit (its positions are relative, say).
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None or max_tokens + num_memory <= longest:
        return
    if num_memory:
        raise UserError(
            f"data.max_tokens: {max_tokens} and a prefix of {num_memory} are more than the LM's {longest} "
            "positions; shorten the captions or choose a bridge with fewer memory tokens"
        )
    raise UserError(f"data.max_tokens: {max_tokens} is more than the LM's {longest} positions; lower it")
