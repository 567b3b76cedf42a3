"""Whether a part of the model keeps the protocol of its slot: it has what the protocol names, and makes what it says.

A part that does not is refused in one line with its slot, its class, the rule and what was found. Without this it would
be an error of some other part, or of the report after a whole training.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY
from mmlm.core.errors import UserError
from mmlm.experiment.trial import tried
from mmlm.model.attention import AttentionRecord
from mmlm.model.protocols import (
    Bridge,
    BridgeInputs,
    BridgeOutput,
    Decoder,
    DecoderInputs,
    Encoder,
    EncoderInputs,
    EncoderOutput,
    TextEncoder,
    TextEncoderInputs,
    TextStates,
)

_NEEDED_IF: Mapping[str, str] = {
    "num_kept": "drops_patches",
    "patch_size": "sees_some",
    "some_tokens": "sees_some",
    "hidden_by": "takes_patterns",
}
"""What a protocol asks for only of parts that have this flag."""
_SELDOM = ("resized",)
"""What only some runs call: most encoders of one's own will never be resized."""
_IMAGES = 2
"""B of a trial."""
_LENGTHS = (5, 3, 4)
"""Tokens of the captions of a trial, start and end included; C of them. The last belongs to no image."""


def check_encoder(encoder: Encoder, given: EncoderInputs, run: bool = False) -> None:
    """UserError for an encoder that breaks its protocol. ``run`` tries a pass too, as ``check_compatible`` does."""
    name = _named("encoder", encoder)
    _check_attributes(name, encoder, Encoder)
    if not run:
        return

    def pass_of(device: torch.device) -> Callable[[nn.Module], EncoderOutput]:
        size = (_IMAGES, 3, given.image_size, given.image_size)
        return lambda part: part(torch.zeros(size, dtype=torch.uint8, device=device))

    made = tried(encoder, name, pass_of)
    if made is None:
        return
    _check_kind(name, made, EncoderOutput)
    _check_shape(name, "tokens", made.tokens, (_IMAGES, "N", "D"))
    _check_equal(name, "width", encoder.width, made.tokens.shape[2], "tokens of width {}")
    rows, columns = encoder.grid
    number = encoder.num_prefix_tokens + rows * columns
    if made.tokens.shape[1] != number:
        raise UserError(
            f"{name} says grid {rows} x {columns} and num_prefix_tokens {encoder.num_prefix_tokens}, which are "
            f"{number} tokens, and makes {made.tokens.shape[1]}; make them equal"
        )
    _check_pooled(name, encoder.pooled_width, made.pooled)


def check_bridge(bridge: Bridge, given: BridgeInputs, run: bool = False) -> None:
    """UserError for a bridge that breaks its protocol. ``run`` is as in ``check_encoder``."""
    name = _named("bridge", bridge)
    _check_attributes(name, bridge, Bridge)
    if given.pool is (bridge.pooled_width is None):
        wanted = "give it a width, since the encoder does not pool" if given.pool else "make it None: the encoder pools"
        raise UserError(f"{name} says pooled_width {bridge.pooled_width} and was told pool={given.pool}; {wanted}")
    if not run:
        return
    number = given.num_prefix_tokens + given.grid[0] * given.grid[1]

    def pass_of(device: torch.device) -> Callable[[nn.Module], tuple[BridgeOutput, Tensor]]:
        patches = torch.zeros(_IMAGES, number, given.patch_width, device=device)
        return lambda part: (part(patches), cast(Bridge, part).patch_attention(patches))

    made = tried(bridge, name, pass_of)
    if made is None:
        return
    output, shares = made
    _check_kind(name, output, BridgeOutput)
    _check_shape(name, "memory", output.memory, (_IMAGES, "M", "Dm"))
    _check_equal(name, "memory_width", bridge.memory_width, output.memory.shape[2], "memory of width {}")
    _check_equal(name, "num_memory", bridge.num_memory, output.memory.shape[1], "{} memory tokens")
    _check_pooled(name, bridge.pooled_width, output.pooled)
    _check_shape(name, "patch_attention", shares, (_IMAGES, bridge.num_memory, number))


def check_text_encoder(text_encoder: TextEncoder, given: TextEncoderInputs, run: bool = False) -> None:
    """UserError for a text encoder that breaks its protocol. ``run`` is as in ``check_encoder``."""
    name = _named("text_encoder", text_encoder)
    _check_attributes(name, text_encoder, TextEncoder)
    lengths = _lengths(given.max_tokens)
    if not run or not lengths:
        return

    def pass_of(device: torch.device) -> Callable[[nn.Module], Tensor]:
        return lambda part: part(*_texts(lengths, device))

    made = tried(text_encoder, name, pass_of)
    if made is not None:
        _check_shape(name, "vectors", made, (len(lengths), "D"))
        _check_equal(name, "width", text_encoder.width, made.shape[1], "vectors of width {}")


@dataclass(frozen=True)
class _Decoded:
    """What a decoder makes in a trial."""

    text: TextStates | None
    hidden: Tensor
    recorded: list[Tensor]
    logits: Tensor


def check_decoder(decoder: Decoder, given: DecoderInputs, run: bool = False) -> None:
    """UserError for a decoder that breaks its protocol. ``run`` is as in ``check_encoder``."""
    name = _named("decoder", decoder)
    _check_attributes(name, decoder, Decoder, () if given.embeds_text else ("text", "text_width"))
    _check_shape(name, "head_weight", decoder.head_weight, (decoder.vocab_size, decoder.width))
    if decoder.vocab_size < given.vocab_size:
        raise UserError(
            f"{name} says vocab_size {decoder.vocab_size}, and the tokenizer has {given.vocab_size} ids; give it as "
            "many or more"
        )
    lengths = _lengths(given.max_tokens)
    if not run or not lengths:
        return
    made = tried(decoder, name, lambda device: lambda part: _decoded(cast(Decoder, part), given, lengths, device))
    if made is None:
        return
    if made.text is not None:
        _check_kind(f"{name}.text", made.text, TextStates)
        _check_shape(name, "text(...).pooled", made.text.pooled, (len(lengths), "D"))
        _check_equal(name, "text_width", decoder.text_width, made.text.pooled.shape[1], "text(...).pooled of width {}")
    # The meta device knows no lengths: a decoder that runs there returns the states at the padding too.
    states = "P" if made.hidden.is_meta else sum(lengths) - len(lengths)
    _check_shape(name, "hidden(...)", made.hidden, (states, "D"))
    _check_equal(name, "width", decoder.width, made.hidden.shape[1], "hidden(...) of width {}")
    if decoder.records_attention:
        if not made.recorded:
            raise UserError(f"{name} says records_attention and records nothing in hidden(record=...); say false")
        _check_shape(name, "attention", made.recorded[-1], (len(lengths), "H", max(lengths) - 1, given.num_memory))
    _check_shape(name, "logits of decode(...)", made.logits, (_IMAGES, 1, decoder.vocab_size))


def _decoded(decoder: Decoder, given: DecoderInputs, lengths: Collection[int], device: torch.device) -> _Decoded:
    """Everything that training, evaluation and the report ask of a decoder, once."""
    tokens, sizes = _texts(lengths, device)
    memory = torch.zeros(_IMAGES, given.num_memory, given.memory_width, device=device)
    image_index = torch.tensor([0, 1, TEXT_ONLY], device=device)
    text = decoder.text(tokens, sizes) if given.embeds_text else None
    record = AttentionRecord() if decoder.records_attention else None
    hidden = decoder.hidden(tokens, sizes, memory, image_index, text, record=record)
    logits = decoder.decode(tokens[:_IMAGES, :1], decoder.start_decoding(memory))
    return _Decoded(text, hidden, [] if record is None else record.weights, logits)


def _lengths(max_tokens: int) -> tuple[int, ...]:
    """The lengths of the captions of a trial; none if ``max_tokens`` has no place for a word, which data refuses."""
    return tuple(min(length, max_tokens) for length in _LENGTHS) if max_tokens > 2 else ()


def _texts(lengths: Collection[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens int64[C, T] and lengths int64[C]."""
    tokens = torch.ones(len(lengths), max(lengths), dtype=torch.int64, device=device)
    return tokens, torch.tensor(list(lengths), device=device)


# Rules


def _named(slot: str, part: object) -> str:
    """The slot and the class of a part, which head every message."""
    return f"{slot}: {type(part).__name__}"


def _check_attributes(name: str, part: object, protocol: type, spared: Collection[str] = ()) -> None:
    """UserError for a part that lacks something that its protocol names, but for what is ``spared``."""
    methods = [key for key in vars(protocol) if not key.startswith("_")]
    for key in (*inspect.get_annotations(protocol), *methods):
        flag = _NEEDED_IF.get(key)
        if key in spared or key in _SELDOM or (flag is not None and not getattr(part, flag, True)):
            continue
        # A protocol is kept by having the attributes, whatever the class: there is nothing else to ask for.
        if not hasattr(part, key):
            raise UserError(
                f"{name} has no {key}, which {protocol.__name__} in mmlm/model/protocols.py asks for; add it"
            )


def _check_kind(name: str, made: object, kind: type[EncoderOutput] | type[BridgeOutput] | type[TextStates]) -> None:
    """UserError unless a part returns the dataclass ``kind``, or what has all of its fields."""
    if not all(hasattr(made, field.name) for field in dataclasses.fields(kind)):
        raise UserError(f"{name} returns a {type(made).__name__}; make it return {kind.__name__}")


def _check_shape(name: str, what: str, value: object, wanted: tuple[int | str, ...]) -> None:
    """UserError unless ``value`` is a tensor of the shape ``wanted``, in which a letter stands for any size."""
    form = f"[{', '.join(map(str, wanted))}]"
    if not isinstance(value, Tensor):
        raise UserError(f"{name} makes {what} that is a {type(value).__name__}; make a tensor of shape {form}")
    sizes = zip(value.shape, wanted, strict=False)
    if value.ndim != len(wanted) or any(isinstance(size, int) and found != size for found, size in sizes):
        raise UserError(f"{name} makes {what} of shape {list(value.shape)}; make it {form}")


def _check_equal(name: str, attribute: str, said: object, made: int, thing: str) -> None:
    """UserError unless a part makes what its attribute says: ``thing``, in which ``{}`` stands for the number."""
    if said != made:
        raise UserError(f"{name} says {attribute} {said} and makes {thing.format(made)}; make them equal")


def _check_pooled(name: str, width: int | None, pooled: Tensor | None) -> None:
    """UserError unless the pooled vector of an encoder or a bridge has the width that it says, or is None with it."""
    if width is None and pooled is None:
        return
    if width is None or pooled is None:
        found = "none" if pooled is None else "one"
        raise UserError(f"{name} says pooled_width {width} and makes {found}; make both None, or neither")
    _check_shape(name, "pooled", pooled, (_IMAGES, "Dp"))
    _check_equal(name, "pooled_width", width, pooled.shape[1], "a pooled vector of width {}")
