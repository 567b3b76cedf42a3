"""Counts parameters and FLOPs of each part of a model."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlm.core.model_output import ModelOutput, Pairs
from mmlm.core.views import CAPTION, EMBED, TextPattern, TextView, View
from mmlm.model.model import ImageTextModel, parameter_counts

Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelCosts:
    """Parameters and FLOPs of each direct child module of a model, by name."""

    parameters: Mapping[str, int]
    """Number of parameters; a shared tensor counts once, in the first child that has it."""
    flops: Mapping[str, int]
    """FLOPs of one forward pass over one image and one caption; a multiply-add counts as 2."""


IMAGE_PARTS = ("encoder", "bridge", "image_projection")
"""The children of a model that run once an image; the others run once a caption."""


@dataclass(frozen=True)
class TrainingCosts:
    """FLOPs of training steps, counted at two lengths of a caption, between which they are taken to grow evenly.

    (Attention grows with the square of the length, which at lengths such as 77 is a small part.) Backward takes as many
    FLOPs as forward for the gradients of a part's inputs, where something before it trains, and as many for those of
    its weights, or the share of them that trains. What is computed a second time (micro-batches of a comparison,
    activation checkpointing) does not count.
    """

    short: ModelCosts
    short_tokens: int
    full: ModelCosts
    full_tokens: int

    def flops(self, model: ImageTextModel, images: int, captions: int, tokens: int) -> float:
        """Of steps over so many images, captions and tokens of all captions, with what trains in ``model`` now."""
        found = 0.0
        for name, passes in _passes(model).items():
            short, full = self.short.flops[name], self.full.flops[name]
            if name in IMAGE_PARTS:
                found += passes * images * full
                continue
            a_token = (full - short) / max(1, self.full_tokens - self.short_tokens)
            found += passes * (captions * (full - a_token * self.full_tokens) + tokens * a_token)
        return found


def _passes(model: ImageTextModel) -> dict[str, float]:
    """How many times its forward FLOPs each part takes in a step, in the order in which data goes through the parts."""
    found, trains_before = {}, {"image": False, "text": False}
    order = ("encoder", "bridge", "image_projection", "text_encoder", "decoder", "text_norm", "text_projection")
    children = dict(model.named_children())
    for name in (name for name in order if name in children):
        sizes = [(p.numel(), p.requires_grad) for p in children[name].parameters()]
        share = sum(size for size, trains in sizes if trains) / max(1, sum(size for size, _ in sizes))
        side = "image" if name in IMAGE_PARTS else "text"
        read = trains_before[side] or (name == "decoder" and trains_before["image"])
        trains_before[side] = read or share > 0
        found[name] = 1 + float(trains_before[side]) + share
    return found


def model_costs(
    model: ImageTextModel,
    image_size: int,
    num_tokens: int,
    views: Collection[View] = (EMBED, CAPTION),
    num_pairs: int = 0,
) -> ModelCosts:
    """Counts by running the model once, over one image and one caption of ``num_tokens`` tokens; changes nothing in it.

    Counted are matrix products, convolutions and attention of the forward pass (backward is about twice as much), for
    the ``views`` that training asks for and the ``num_pairs`` image-text pairs that it fuses for each image. Eval mode:
    no patch dropout. Causal attention counts in full, as in the usual estimates. Each text view is a pass of the
    decoder, with its output head at every position. Fused kernels that the counter does not know (``nn.LSTM``) count as
    0.

    To be called under the run's autocast, without which weights of different dtypes do not multiply. The precision does
    not change the count.
    """
    device = next(model.parameters()).device
    images = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)
    tokens = torch.zeros(1, num_tokens, dtype=torch.int64, device=device)
    lengths = torch.full((1,), num_tokens, device=device)
    flops = dict.fromkeys(dict(model.named_children()), 0)

    # One counter for each part: the counter attributes FLOPs to modules by their ``forward`` only, and a decoder is
    # called by other methods.
    def count(name: str, run: Callable[[], Result]) -> Result:
        with FlopCounterMode(display=False) as counter:
            result = run()
        flops[name] += counter.get_total_flops()
        return result

    with _countable(model, device):
        encoded = count("encoder", lambda: model.encoder(images))
        # Without a bridge this hands on what the encoder has pooled, which costs nothing.
        through = "encoder" if model.bridge is None else "bridge"
        pooled, memory = count(through, partial(model.through_bridge, encoded))
        text = None
        if EMBED in views:
            if model.text_encoder is not None:
                vector = count("text_encoder", partial(model.text_encoder, tokens, lengths))
            else:
                assert model.decoder is not None, "one of the two embeds texts"
                text = count("decoder", partial(model.decoder.text, tokens, lengths))
                vector = text.pooled
            count("image_projection", lambda: model.image_projection(pooled))
            count("text_projection", lambda: model.text_projection(model.text_norm(vector)))

        image_index = torch.zeros(1, dtype=torch.int64, device=device)
        for view in views:
            if isinstance(view, TextView) and model.decoder is not None:
                assert memory is not None, "a decoder reads a bridge's memory"
                given = (tokens, lengths, memory, image_index)
                if view == CAPTION:
                    hidden = count("decoder", partial(model.decoder.hidden, *given, text))
                else:
                    hidden = count("decoder", partial(model.decoder.hidden_by, *given, TextPattern(lengths - 1)))
                count("decoder", partial(nn.functional.linear, hidden, model.decoder.head_weight))
        if num_pairs:
            index, matched = torch.zeros(2, num_pairs, dtype=torch.int64, device=device)
            pairs = Pairs(index, tokens.expand(num_pairs, -1), lengths.expand(num_pairs), matched > 0, index.sum())
            count("decoder", lambda: model.fuse(ModelOutput(memory=memory), pairs))
    return ModelCosts(parameter_counts(model), flops)


@contextmanager
def _countable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, and no kernels that the counter misses; everything is as before afterwards.

    On CPU the counter (torch 2.14) knows neither the fused attention nor the fast path of ``nn.MultiheadAttention``:
    both would count as 0. The counter also fails on a view of a trainable parameter that was made without gradients,
    so parameters are frozen for the time being.
    """
    training = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval().requires_grad_(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trainable:
            parameter.requires_grad = True
        # Each module gets its own mode back: a frozen part may be in eval mode within a model that trains.
        for module, was_training in training:
            module.training = was_training
