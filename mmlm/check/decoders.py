"""The rules of a text decoder, tried on random captions and memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast, get_args

import torch
from torch import Tensor, nn

from mmlm.check.batch import VOCABULARY, with_more_padding
from mmlm.check.modules import ModuleUnderTest, Outputs, dtype_of, stir, tolerance_of
from mmlm.check.report import Check, expect, expect_attributes, expect_floating, expect_same, expect_shape
from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.views import TextPattern
from mmlm.model.attention import AttentionRecord
from mmlm.model.protocols import Decoder, Fusion, TextStates

CHUNKS = ((1, 1, 1, 1, 1, 1, 1, 1), (8,), (3, 1, 4))
"""Numbers of tokens that are handed to ``decode`` one after the other."""


@dataclass(frozen=True)
class DecoderUnderTest:
    """A decoder, and what it is built for."""

    make: Callable[[bool], Decoder]
    """A new decoder for ``VOCABULARY`` tokens; the argument is ``embeds_text``."""
    memory_width: int
    """Dm."""
    num_memory: int
    """M."""
    batch: Batch
    """Captions of unequal lengths, two of them without an image; only the tokens matter here."""

    def new(self) -> Decoder:
        """A decoder in float64 and eval mode, no weight where it started."""
        torch.manual_seed(0)
        decoder = self.make(True)
        stir(cast(nn.Module, decoder).double().eval())
        return decoder

    def memory(self, seed: int = 0) -> Tensor:
        """float64[B, M, Dm], random."""
        shape = (len(self.batch.images), self.num_memory, self.memory_width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def hidden(self, decoder: Decoder, batch: Batch | None = None, memory: Tensor | None = None) -> Tensor:
        """float64[P, D] of a batch and a memory; those of the subject if they are not given."""
        batch = self.batch if batch is None else batch
        memory = self.memory() if memory is None else memory
        return decoder.hidden(batch.tokens, batch.lengths, memory, batch.image_index)

    def tolerance(self, decoder: Decoder) -> float:
        """How exactly results can be compared."""
        return tolerance_of(lambda factor: self.hidden(decoder, memory=self.memory() * factor))

    def modules(self) -> Iterator[ModuleUnderTest]:
        """The decoder as a part with weights: one that embeds texts too, and one that does not."""
        for embeds_text in (True, False):
            make = cast(Callable[[], nn.Module], partial(self.make, embeds_text))
            yield ModuleUnderTest(make, partial(self._outputs, embeds_text=embeds_text))

    def _outputs(self, module: nn.Module, embeds_text: bool) -> Outputs:
        decoder, batch = cast(Decoder, module), self.batch
        memory = self.memory().to(dtype_of(module))
        hidden = decoder.hidden(batch.tokens, batch.lengths, memory, batch.image_index)
        made = {"logits": hidden @ decoder.head_weight.T}
        return made | ({"pooled": decoder.text(batch.tokens, batch.lengths).pooled} if embeds_text else {})


def _rows(batch: Batch) -> list[range]:
    """The rows of ``hidden`` of each caption."""
    ends = (batch.lengths - 1).cumsum(0).tolist()
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@torch.no_grad()
def states(subject: DecoderUnderTest) -> None:
    """See ``SIZES``."""
    decoder, batch = subject.new(), subject.batch
    kinds: dict[str, tuple[type, ...]] = {
        "width": (int,),
        "vocab_size": (int,),
        "fusion": (str,),
        "text_width": (int,),
        "records_attention": (bool,),
        "takes_patterns": (bool,),
        "vocabulary": (str, type(None)),
    }
    expect_attributes(decoder, kinds, "Decoder")
    fusions = get_args(Fusion)
    expect(decoder.fusion in fusions, f"fusion is '{decoder.fusion}'", f"make it one of {', '.join(fusions)}")
    hidden = subject.hidden(decoder, batch)
    places = int((batch.lengths - 1).sum())
    fix = "return one row for each token that has a next one, caption after caption, without padding"
    expect_shape(hidden, (places, decoder.width), "hidden", "[sum of lengths - 1, width]", fix)
    expect_floating(hidden, torch.float64, "hidden")


@torch.no_grad()
def head(subject: DecoderUnderTest) -> None:
    """See ``SIZES``."""
    decoder = subject.new()
    expect(
        decoder.vocab_size == VOCABULARY,
        f"vocab_size is {decoder.vocab_size} and it was built with {VOCABULARY}",
        "keep the argument vocab_size",
    )
    fix = "return the weight of the output projection, [tokens, width of the hidden states]"
    expect_shape(decoder.head_weight, (VOCABULARY, decoder.width), "head_weight", "[vocab_size, width]", fix)


@torch.no_grad()
def text(subject: DecoderUnderTest) -> None:
    """See ``SIZES``."""
    decoder, batch = subject.new(), subject.batch
    out, count = decoder.text(batch.tokens, batch.lengths), len(batch.lengths)
    expect(isinstance(out, TextStates), f"text returns a {type(out).__name__}", "return TextStates")
    fix = "return the states at all T places, and one vector of text_width for each caption"
    expect_shape(out.states, (count, batch.tokens.shape[1], out.states.shape[-1]), "states", "[C, T, D]", fix)
    expect_shape(out.pooled, (count, decoder.text_width), "pooled", "[C, text_width]", fix)


@torch.no_grad()
def text_reused(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch = subject.new(), subject.batch
    reused = decoder.hidden(
        batch.tokens, batch.lengths, subject.memory(), batch.image_index, decoder.text(batch.tokens, batch.lengths)
    )
    fix = "go on from text.states as hidden would make them itself, or leave `text` aside"
    expect_same(reused, subject.hidden(decoder), "hidden with `text` given", fix, subject.tolerance(decoder))


@torch.no_grad()
def captions_apart(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch, memory = subject.new(), subject.batch, subject.memory()
    together, tolerance = subject.hidden(decoder), subject.tolerance(decoder)
    fix = "let caption i read memory[image_index[i]] and nothing of another caption; put its rows in its place"
    for c, rows in enumerate(_rows(batch)):
        image = int(batch.image_index[c])
        if image != TEXT_ONLY:
            alone = decoder.hidden(
                batch.tokens[c : c + 1], batch.lengths[c : c + 1], memory[image][None], torch.tensor([0])
            )
            expect_same(alone, together[rows.start : rows.stop], f"caption {c} alone", fix, tolerance)


@torch.no_grad()
def text_only(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch = subject.new(), subject.batch
    one, other = subject.hidden(decoder), subject.hidden(decoder, memory=subject.memory(seed=1))
    tolerance = subject.tolerance(decoder)
    fix = "mask the memory where image_index is TEXT_ONLY (-1), which as an index means the last image"
    for c, rows in enumerate(_rows(batch)):
        if int(batch.image_index[c]) == TEXT_ONLY:
            same = other[rows.start : rows.stop], one[rows.start : rows.stop]
            expect_same(*same, f"text-only caption {c} beside other images", fix, tolerance)


@torch.no_grad()
def reads_its_image(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch, changed = subject.new(), subject.batch, subject.memory()
    changed[0] += 1
    moved = (subject.hidden(decoder, memory=changed) - subject.hidden(decoder)).abs().amax(-1)
    for c, rows in enumerate(_rows(batch)):
        if int(batch.image_index[c]) == 0:
            # The last place of a caption sees most: the whole caption and the image.
            is_moved = bool(moved[rows.stop - 1] > 1e-7)
            expect(is_moved, f"caption {c} is the same with another image", "use the memory")


@torch.no_grad()
def left_to_right(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch = subject.new(), subject.batch
    before, tolerance = subject.hidden(decoder), subject.tolerance(decoder)
    fix = "mask attention to later tokens; the state at token t may read tokens 0 to t only"
    for place in (1, 3, 6):
        tokens = batch.tokens.clone()
        tokens[:, place] = 3 + (tokens[:, place] - 2) % (VOCABULARY - 3)
        after = subject.hidden(decoder, replace(batch, tokens=tokens))
        for rows in _rows(batch):
            earlier = slice(rows.start, min(rows.stop, rows.start + place))
            what = f"states before token {place}, which is another one,"
            expect_same(after[earlier], before[earlier], what, fix, tolerance)


@torch.no_grad()
def padding(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch = subject.new(), subject.batch
    wanted, tolerance = subject.hidden(decoder), subject.tolerance(decoder)
    fix = "let no real token attend to what is behind `lengths`"
    longer = with_more_padding(batch)
    expect_same(subject.hidden(decoder, longer), wanted, "hidden with more padding", fix, tolerance)
    behind = torch.arange(batch.tokens.shape[1])[None, :] >= batch.lengths[:, None]
    other = replace(batch, tokens=torch.where(behind, 5, batch.tokens))
    expect_same(subject.hidden(decoder, other), wanted, "hidden with other tokens in the padding", fix, tolerance)
    pooled = decoder.text(batch.tokens, batch.lengths).pooled
    for name, one in {"more": longer, "other": other}.items():
        found = decoder.text(one.tokens, one.lengths).pooled
        expect_same(found, pooled, f"the pooled text with {name} padding", fix, tolerance)


@torch.no_grad()
def cache(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, memory = subject.new(), subject.memory()[:3]
    tokens = torch.randint(3, VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(2))
    wanted, tolerance = _whole_pass(decoder, tokens, memory, torch.arange(3)), subject.tolerance(decoder)
    fix = "let decode go on from the cache as if it had read all tokens at once (positions, masks, the image's keys)"
    for chunks in CHUNKS:
        kept, read = decoder.start_decoding(memory), 0
        for size in chunks:
            logits = decoder.decode(tokens[:, read : read + size], kept)
            expect_shape(logits, (3, size, VOCABULARY), "the result of decode", "[B, t, V]", fix)
            what = f"logits of token {read + 1} to {read + size}, decoded {'/'.join(map(str, chunks))} at a time,"
            expect_same(logits, wanted[:, read : read + size], what, fix, tolerance)
            read += size


@torch.no_grad()
def shared_cache(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, memory, copies, images = subject.new(), subject.memory()[:3], 2, torch.arange(3)
    first = torch.randint(3, VOCABULARY, (6, 3), generator=torch.Generator().manual_seed(3))
    later = torch.randint(3, VOCABULARY, (4, 2), generator=torch.Generator().manual_seed(4))
    tolerance, fix = subject.tolerance(decoder), "let caption i of B * n read image i // n, in decode as in the cache"
    kept = decoder.start_decoding(memory, 5)
    logits = decoder.decode(first, kept)
    wanted = _whole_pass(decoder, first, memory, images.repeat_interleave(copies))
    expect_same(logits, wanted, "logits of two captions of each image", fix, tolerance)
    # The second caption of image 0 goes on from the first one, the first of image 2 from its second; image 1 leaves.
    kept.copy_rows(torch.tensor([0, 5]), torch.tensor([1, 4]))
    kept.keep_images(torch.tensor([0, 2]))
    logits = decoder.decode(later, kept)
    tokens = torch.cat([first[[0, 0, 5, 5]], later], dim=1)
    wanted = _whole_pass(decoder, tokens, memory, torch.tensor([0, 0, 2, 2]))[:, 3:]
    fix = "let copy_rows move all that a caption has read, and keep_images drop images and their captions"
    expect_same(logits, wanted, "logits after copy_rows and keep_images", fix, tolerance)


def _whole_pass(decoder: Decoder, tokens: Tensor, memory: Tensor, image_index: Tensor) -> Tensor:
    """float64[C, T, V]: the logits after every token of int64[C, T], without a cache."""
    count, places = tokens.shape
    # One column more, which is a target only: `hidden` gives no state at the last token.
    longer = torch.cat([tokens, tokens[:, :1]], dim=1)
    hidden = decoder.hidden(longer, torch.full((count,), places + 1), memory, image_index)
    return hidden.view(count, places, -1) @ decoder.head_weight.T


@torch.no_grad()
def attention_record(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch = subject.new(), subject.batch
    if not decoder.records_attention:
        return
    record = AttentionRecord()
    decoder.hidden(batch.tokens, batch.lengths, subject.memory(), batch.image_index, record=record)
    expect(bool(record.weights), "the record stays empty", "append the weights of each layer that reads the memory")
    for weights in record.weights:
        places = batch.tokens.shape[1] - 1
        fix = "record the weights over the memory, or set records_attention = False"
        heads = weights.shape[1] if weights.ndim == 4 else 0
        shape = (len(batch.lengths), heads, places, subject.num_memory)
        expect_shape(weights, shape, "a record", "[C, H, T - 1, M]", fix)
        expect(weights.dtype == torch.float32, f"a record is {weights.dtype}", "record float32")
        real = batch.target_mask & (batch.image_index != TEXT_ONLY)[:, None]
        sums = weights.sum(-1).amax(1)[real]
        expect(bool((sums <= 1 + 1e-4).all()), f"weights sum to {sums.max():.3g}", "record softmax weights, 1 at most")


@torch.no_grad()
def patterns(subject: DecoderUnderTest) -> None:
    """See ``RELATIONS``."""
    decoder, batch, memory = subject.new(), subject.batch, subject.memory()
    if not decoder.takes_patterns:
        return
    given = (batch.tokens, batch.lengths, memory, batch.image_index)
    causal = decoder.hidden_by(*given, TextPattern(torch.zeros_like(batch.lengths)))
    fix = "let every token see the first `visible` ones, and those up to itself"
    tolerance = subject.tolerance(decoder)
    expect_same(causal, subject.hidden(decoder), "hidden_by with nothing visible ahead", fix, tolerance)
    # All inputs masked, as in parallel prediction: the tokens behind the masks must not matter.
    masked, mask = torch.ones_like(batch.inputs, dtype=torch.bool), torch.ones(decoder.width, dtype=torch.float64)
    pattern = TextPattern(batch.lengths - 1, masked, mask)
    one = decoder.hidden_by(*given, pattern)
    other = decoder.hidden_by(batch.tokens.flip(0) * 0 + 5, *given[1:], pattern)
    expect_same(other, one, "masked inputs of other tokens", "put mask_embedding in their place", tolerance)


SIZES: tuple[Check[DecoderUnderTest], ...] = (
    Check("hidden is float[P, D], P the sum of lengths - 1 and D = width", states),
    Check("head_weight is float[V, D], V = vocab_size and D = width", head),
    Check("text gives states float[C, T, D] and pooled float[C, text_width]", text),
)
"""The rules about the sizes and types of what a decoder returns, which all others build on."""
RELATIONS: tuple[Check[DecoderUnderTest], ...] = (
    Check("hidden is the same with the states of text given", text_reused),
    Check("a caption's rows stand in its place and do not depend on other captions or images", captions_apart),
    Check("a caption's states depend on its image", reads_its_image),
    Check("text-only captions read no image", text_only),
    Check("a state depends on no later token", left_to_right),
    Check("neither what stands in the padding nor more of it changes a state", padding),
    Check("decoding with a cache gives the logits of the whole pass", cache),
    Check("captions of one image share a cache, go on from one another and leave it", shared_cache),
    Check(
        "with records_attention, hidden records float32[C, H, T - 1, M] of weights over the memory", attention_record
    ),
    Check("with takes_patterns, hidden_by follows what is visible and masked", patterns),
)
"""The rules about what a decoder's result depends on."""
