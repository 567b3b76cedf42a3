"""Parts that break one rule of their slot each, as somebody's first try might; the kit has to say which."""

import io
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmlm.core.batch import Batch, Caption, Example
from mmlm.core.distributed import gather, sum_over_ranks
from mmlm.core.figure import Figure, share_of_training
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import CAPTION, EMBED, StepKey
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.data.transforms import Transform
from mmlm.evaluation.evaluators import caption_losses
from mmlm.evaluation.requires import Requires
from mmlm.evaluation.split import EncodedSplit
from mmlm.model.attention import AttentionRecord
from mmlm.model.bridges.projection import LinearProjection
from mmlm.model.decoders.transformer import TransformerDecoder
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.protocols import BridgeOutput, EncoderOutput, TextStates
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.objective import Comparison, Objective
from mmlm.objectives.shared.keys import Keys

Grid = tuple[int, int]

# Bridges


class WrongMemoryWidth(LinearProjection):
    """Says another width than that of its memory."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)
        self.memory_width = width + 1


class PoolsUnasked(LinearProjection):
    """Pools whether it was asked to or not."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)

    def forward(self, patches: Tensor) -> BridgeOutput:
        return BridgeOutput(super().forward(patches).memory, patches.mean(dim=1))


class UnusedParameter(LinearProjection):
    """Builds a layer that it never uses."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)
        self.gate = nn.Linear(width, width)


class RowsSumToTwo(LinearProjection):
    """Returns scores for shares."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)

    def patch_attention(self, patches: Tensor) -> Tensor:
        return 2 * super().patch_attention(patches)


class NoPatchAttention(nn.Module):
    """Lacks a method."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__()
        self.memory_width, self.num_memory, self.pooled_width = width, 1, width if pool else None
        self.projection = nn.Linear(patch_width, width)

    def forward(self, patches: Tensor) -> BridgeOutput:
        vector = self.projection(patches.mean(dim=1))
        return BridgeOutput(vector[:, None], None if self.pooled_width is None else vector)


class NumpyStart(LinearProjection):
    """Draws its start with NumPy."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)
        start = np.random.normal(size=tuple(self.projection.weight.shape))
        with torch.no_grad():
            self.projection.weight.copy_(torch.from_numpy(start))


class UnregisteredBuffer(LinearProjection):
    """Holds a random tensor that no checkpoint has."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)
        self.directions = torch.randn(width)

    def forward(self, patches: Tensor) -> BridgeOutput:
        out = super().forward(patches)
        return BridgeOutput(out.memory * self.directions, out.pooled)


class DropoutInEval(LinearProjection):
    """Drops out whenever it is called."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)

    def forward(self, patches: Tensor) -> BridgeOutput:
        out = super().forward(patches)
        return BridgeOutput(F.dropout(out.memory, 0.1), out.pooled)


class CentredOverBatch(LinearProjection):
    """Takes the batch's mean from each image."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)

    def forward(self, patches: Tensor) -> BridgeOutput:
        out = super().forward(patches)
        return BridgeOutput(out.memory - out.memory.mean(dim=0) if len(patches) else out.memory, out.pooled)


class RootAtZero(LinearProjection):
    """Has a gradient that is not finite."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)

    def forward(self, patches: Tensor) -> BridgeOutput:
        out = super().forward(patches)
        return BridgeOutput(out.memory + (out.memory - out.memory.detach()).abs().sqrt(), out.pooled)


class HalfPrecision(LinearProjection):
    """Computes in float32 whatever its weights are."""

    def __init__(self, patch_width: int, grid: Grid, width: int, pool: bool) -> None:
        super().__init__(patch_width, grid, width, pool=pool)

    def forward(self, patches: Tensor) -> BridgeOutput:
        out = super().forward(patches)
        return BridgeOutput(out.memory.float(), out.pooled)


# Encoders


class ForgottenClassToken(TimmVit):
    """Has a class token in front of the patches and does not say so."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size, patch_size=8, width=32, depth=1, num_heads=2, keep_prefix_tokens=True)
        self.num_prefix_tokens = 0


class SeesOtherPatches(TimmVit):
    """Encodes the whole image where it is to encode some patches."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size, patch_size=8, width=32, depth=1, num_heads=2, class_token=False)

    def some_tokens(self, images: Tensor, kept: Tensor) -> Tensor:
        return self(images).tokens.take_along_dim(kept[:, :, None], dim=1)


class NormalisesTheBatch(TimmVit):
    """Takes the mean brightness of the batch from each image."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size, patch_size=8, width=32, depth=1, num_heads=2, class_token=False)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> EncoderOutput:
        tokens = super().forward(images, kept).tokens
        return EncoderOutput(tokens - tokens.mean() if len(images) else tokens)


# Text encoders


class MeanOfPadding(nn.Module):
    """Pools over the padding, too."""

    vocabulary = None

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.width, self.embedding = width, nn.Embedding(vocab_size, width)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.embedding(tokens).mean(dim=1)


# Decoders


class Decoder(TransformerDecoder):
    """Our decoder, small, for others to break."""

    def __init__(self, vocab_size: int, memory_width: int, max_tokens: int, width: int = 32) -> None:
        super().__init__(vocab_size, memory_width, max_tokens, width=width, num_heads=2)


class LooksAhead(Decoder):
    """Sees the token that it is to predict."""

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        states = super().hidden(tokens, lengths, memory, image_index, text, record)
        real = torch.arange(tokens.shape[1] - 1)[None, :] < (lengths - 1)[:, None]
        return states + self.token_embedding(tokens[:, 1:][real])


class WrongSecondToken(Decoder):
    """Decodes the first token as it should, and forgets the place of all others."""

    def decode(self, tokens: Tensor, cache: object) -> Tensor:
        first = self.position_embedding.clone()
        if cache.num_tokens:
            with torch.no_grad():
                self.position_embedding.copy_(self.position_embedding.roll(1, dims=0))
        logits = super().decode(tokens, cache)
        with torch.no_grad():
            self.position_embedding.copy_(first)
        return logits


class NarrowHead(Decoder):
    """Hands out a head that is narrower than its states."""

    @property
    def head_weight(self) -> Tensor:
        return self.head.weight[:, 1:]


class TextReadsLastImage(Decoder):
    """Takes the -1 of a text-only caption for the last image."""

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        return super().hidden(tokens, lengths, memory, image_index % max(1, len(memory)), text, record)


class BlindDecoder(Decoder):
    """Never looks at its image."""

    def hidden(
        self,
        tokens: Tensor,
        lengths: Tensor,
        memory: Tensor,
        image_index: Tensor,
        text: TextStates | None = None,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        return super().hidden(tokens, lengths, 1e-12 * memory, image_index, text, record)


# Objectives


class MeanOfMicroBatch(Captioning):
    """Divides by the tokens of the micro-batch."""

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        loss = super().forward(output, batch, step_key, counts)
        term = loss.terms["captioning"]
        own = self.counts(batch, step_key)["tokens"].clamp(min=1)
        return Loss({"captioning": Term(term.local_sum / own, torch.ones_like(term.local_sum.detach()))})


class CountsAfterwards(Captioning):
    """Counts what the last forward pass has seen."""

    seen = torch.zeros((), dtype=torch.int64)

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        return {"tokens": self.seen}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        self.seen = self.chosen(batch, step_key).sum()
        return super().forward(output, batch, step_key, counts)


class EmptyRankSkips(Comparison):
    """Pulls each image to the mean of all texts, but a rank without images takes no part in gathering them."""

    views = frozenset({EMBED})

    def compare(self, image: Tensor, text: Tensor, keys: Keys) -> Loss:
        if len(image) == 0:
            return Loss({"pull": Term(image.sum() + text.sum() * 0, torch.ones((), dtype=text.dtype))})
        everyone = gather(text)
        count = sum_over_ranks(torch.tensor(float(len(image)), dtype=text.dtype))
        return Loss({"pull": Term((image - everyone.mean(dim=0)).square().sum(), count)})


class ByRowNumber(Captioning):
    """Weighs the first captions of a batch more."""

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        rows = torch.arange(1, len(batch.lengths) + 1).repeat_interleave(batch.lengths - 1)
        loss = (output.hidden[CAPTION].square().mean(-1) / rows).sum()
        return Loss({"captioning": Term(loss, counts["tokens"].to(loss.dtype))})


class DrawsFromTorch(Captioning):
    """Leaves out tokens that torch draws."""

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        kept = torch.rand(len(output.hidden[CAPTION])) < 0.5
        loss = (output.hidden[CAPTION].square().mean(-1) * kept).sum()
        return Loss({"captioning": Term(loss, counts["tokens"].to(loss.dtype))})


class CountsPadding(Objective):
    """Averages over all places of a caption, padding included."""

    views = frozenset({CAPTION})

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        return {"tokens": torch.tensor(batch.targets.numel())}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        loss = output.hidden[CAPTION].square().sum()
        return Loss({"size": Term(loss, counts["tokens"].to(loss.dtype))})


class PerCent(Captioning):
    """Declares a share, and gives per cent."""

    def __init__(self) -> None:
        super().__init__()
        self.figures = {**self.figures, "right": share_of_training("right", "share of right tokens")}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        loss = super().forward(output, batch, step_key, counts)
        right = 80 * self.chosen(batch, step_key).sum()
        return Loss(loss.terms, {"right": Term(right, loss.terms["captioning"].global_count)})


# Evaluators


class MeanOfBatches:
    """Averages over the batches' means."""

    needs_decoder = True
    figures: Mapping[str, Figure] = {}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        means = split.over_batches(lambda item: item.batch.lengths.double().mean())
        yield "length", float(torch.stack(means).mean())


class YieldsNan:
    """Divides 0 by 0."""

    needs_decoder = False
    figures: Mapping[str, Figure] = {}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        yield "share", float(split.image_embedding[:0].mean())


class InPerCent:
    """Declares a share, and yields per cent."""

    needs_decoder = False
    figures: Mapping[str, Figure] = {"right": Figure("right", share=True)}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        yield "right", 80.0


class ReadsPixels:
    """Reads the pixels of batches that another rank holds."""

    needs_decoder = False
    figures: Mapping[str, Figure] = {}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        yield "brightness", float(torch.cat([item.batch.images.flatten().double() for item in split.batches]).mean())


class RequiresTooLittle:
    """Reads the first caption of every image, and does not say that it needs one."""

    needs_decoder = False
    requires = Requires()
    figures: Mapping[str, Figure] = {}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        yield "length", float(sum(len(captions[0].text) for captions in split.references))


class DrawsAnew:
    """Looks at other captions each time."""

    needs_decoder = True
    figures: Mapping[str, Figure] = {}

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        losses = caption_losses(split, None)
        yield "some", float(losses[torch.randperm(len(losses))[:3]].mean())


# Sources


class _Squares:
    """Ten squares, each of a grey of its own."""

    def __len__(self) -> int:
        return 10

    def _grey(self, index: int) -> int:
        return 20 * index

    def __getitem__(self, index: int) -> Example:
        image = torch.full((3, 8, 8), self._grey(index), dtype=torch.uint8)
        return Example(f"square{index}", image, (Caption(f"square {index}"),))

    def captions(self) -> Iterator[Caption]:
        for index in range(len(self)):
            yield from self[index].captions


class ChangingItems(_Squares):
    """Augments by itself."""

    def _grey(self, index: int) -> int:
        return 20 * index + random.randrange(20)


class DoubledIds(_Squares):
    """Gives two examples one id."""

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        return Example(f"square{index // 2}", example.image, example.captions)


class FloatImages(_Squares):
    """Gives images between 0 and 1."""

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        return Example(example.id, example.image / 255, example.captions)


class CaptionsOnce(_Squares):
    """Lists equal captions once."""

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        return Example(example.id, example.image, (*example.captions, Caption("a square")))

    def captions(self) -> Iterator[Caption]:
        yield from dict.fromkeys(caption for index in range(len(self)) for caption in self[index].captions)


class OtherBytes(_Squares):
    """Gives the bytes of the first image for all."""

    def encoded(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        return file.getvalue()


class ForgetsAShard(_Squares):
    """Does not count its last example among those of the shards."""

    def shard_sizes(self) -> Sequence[int]:
        return [5, 4]


# Tokenizers and transforms


class LosesEnd(BytePair):
    """Cuts a long text together with its end."""

    def encode(self, text: str, language: str | None, max_tokens: int) -> list[int]:
        return super().encode(text, language, 1000)[:max_tokens]


class LosesText(BytePair):
    """Forgets the last token on the way back."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids[:-2])


class OwnDice(Transform):
    """Draws its own noise."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size, None)

    def __call__(self, images: Sequence[Tensor], uniforms: Tensor | None) -> Tensor:
        pixels = super().__call__(images, uniforms)
        return torch.where(torch.rand(pixels.shape) < 0.1, 255, pixels).to(torch.uint8)


# Optimizers and schedules


class ForgetsBiases:
    """Trains matrices only."""

    def __call__(self, module: nn.Module, scales: Mapping[str, float]) -> torch.optim.Optimizer:
        chosen = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        return torch.optim.SGD([{"params": chosen, "lr": 0.01, "peak_lr": 0.01}])


class StepsNotSaved:
    """Makes ever smaller steps, and counts them where no checkpoint looks."""

    def __call__(self, module: nn.Module, scales: Mapping[str, float]) -> torch.optim.Optimizer:
        class Smaller(torch.optim.SGD):
            taken = 0

            def step(self, closure: None = None) -> None:
                self.taken += 1
                for group in self.param_groups:
                    group["lr"] = group["peak_lr"] / self.taken
                super().step()

        return Smaller([{"params": list(module.parameters()), "lr": 0.01, "peak_lr": 0.01}])


class StartsAtZero:
    """Warms up from nothing."""

    def __call__(self, step: int, num_steps: int) -> float:
        return min(1.0, step / 10)
