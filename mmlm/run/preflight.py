"""Looks at a first batch before training: is there something to train on, and is it what was meant?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch, Caption
from mmlm.core.distributed import sum_over_ranks
from mmlm.core.errors import UserError
from mmlm.core.views import ImageView, PatchView, StepKey, TextPattern, TextView
from mmlm.data.tokenizer import Tokenizer, whole_length
from mmlm.objectives.objective import Comparison, FusionObjective, Objective
from mmlm.objectives.shared.keys import Keys
from mmlm.objectives.weighted_sum import WeightedSum

EXAMPLES = 3
"""Captions that are shown in full."""
DRAWS = 16
"""Steps whose masks are counted: a small batch may well have nothing masked at one step."""


def items_of(objective: Objective, batch: Batch, step_key: StepKey) -> dict[str, int]:
    """Counts what an objective has to train on in this rank's batch, by the objective's own names for its items.

    Where the count is random, it is summed over ``DRAWS`` steps. An objective that compares images with texts counts
    the ``images with a caption``.
    """
    if isinstance(objective, Comparison | FusionObjective):
        return {"images with a caption": int(Keys.of(batch).has_caption.sum())}
    first = objective.counts(batch, step_key)
    if any(int(count) for count in first.values()):
        return {name: int(count) for name, count in first.items()}
    draws = [objective.counts(batch, StepKey(step_key.seed, step_key.step + i)) for i in range(DRAWS)]
    return {name: sum(int(counts[name]) for counts in draws) for name in first}


def check_first_batch(objective: WeightedSum, batch: Batch, seed: int) -> None:
    """Raises UserError, in one line, for an objective that has nothing to train on in the batch of any rank."""
    for name, part in objective.named_parts().items():
        items = items_of(part, batch, StepKey(seed))
        counts = torch.tensor([*items.values(), len(batch.images), len(batch.lengths)], device=batch.tokens.device)
        *found, images, captions = sum_over_ranks(counts).tolist()
        if items and not any(found):
            nothing = " and ".join(f"0 {what.replace('_', ' ')}" for what in items)
            raise UserError(
                f"objective.objectives.{name}: the first batch has {nothing} ({images} images, {captions} captions), "
                "which trains nothing; look at it with preflight=true, then give data.train what is missing or set "
                f"objective.weights.{name}=0"
            )


@dataclass(frozen=True)
class Preflight:
    """A batch of training data in words."""

    batch: Batch
    """On the device of the objectives."""
    tokenizer: Tokenizer
    objective: WeightedSum
    max_tokens: int
    seed: int = 0

    def text(self) -> str:
        """Some captions in full, with what objectives draw for them, then what the batch has in all."""
        patterns = self._drawn()
        shown = [self._example(caption, patterns) for caption in self._chosen()]
        return "\n\n".join([*shown, *self._without_caption(), self._totals()])

    def _drawn(self) -> dict[str, TextPattern | Tensor]:
        """What is drawn at the first step, by the name of its view; of objectives that begin later too."""
        drawn: dict[str, TextPattern | Tensor] = {}
        for part in self.objective.named_parts().values():
            for view, made in part.draw(self.batch, StepKey(self.seed)).items():
                assert isinstance(view, TextView | PatchView | ImageView), "inputs are drawn for views that have a name"
                drawn[view.name] = made
        return dict(sorted(drawn.items()))

    def _chosen(self) -> list[int]:
        """The first captions, but the last of them text-only if any is."""
        count = len(self.batch.lengths)
        alone = (self.batch.image_index == TEXT_ONLY).nonzero().flatten().tolist()[:1]
        first = [caption for caption in range(count) if caption not in alone]
        return sorted(first[: EXAMPLES - len(alone)] + alone)

    def _without_caption(self) -> list[str]:
        """A line for some of the images that have no caption."""
        without = (~Keys.of(self.batch).has_caption).nonzero().flatten().tolist()
        lines = [f"{self.batch.ids[image]}: {self._pixels(image)}; no caption" for image in without[:EXAMPLES]]
        return ["\n".join(lines)] if lines else []

    def _example(self, caption: int, patterns: dict[str, TextPattern | Tensor]) -> str:
        image = int(self.batch.image_index[caption])
        words, length = self.batch.captions[caption], int(self.batch.lengths[caption])
        language = "no language" if words.language is None else f"language {words.language}"
        cut = f", cut from {self._full_length(caption)}" if self._is_cut(caption) else ""
        text_only = image == TEXT_ONLY
        lines = [
            f"{'text only' if text_only else self.batch.ids[image]}: {words.text!r}, {language}, {length} tokens{cut}",
            *_read(words),
            *([] if text_only else [f"  {self._pixels(image)}"]),
            *_aligned(self._table(caption, patterns)),
        ]
        more = self.batch.inputs.shape[1] - length
        if more > 0:
            lines.append(f"  and {more} more of padding")
        for name, kept in patterns.items():
            if isinstance(kept, Tensor) and not text_only:
                lines.append(f"  {name}: sees {kept.shape[1]} patches: {', '.join(map(str, kept[image].tolist()))}")
        return "\n".join(lines)

    def _table(self, caption: int, patterns: dict[str, TextPattern | Tensor]) -> list[list[str]]:
        """A header, then a row for each position up to the first that is not supervised."""
        texts = {name: pattern for name, pattern in patterns.items() if isinstance(pattern, TextPattern)}
        rows = [["", "input", "id", "target", "id", "supervised", *texts]]
        inputs, targets = self.batch.inputs[caption].tolist(), self.batch.targets[caption].tolist()
        mask, real = self.batch.target_mask[caption].tolist(), self.batch.real_mask[caption].tolist()
        pieces = self._pieces(caption)
        for place in range(min(len(inputs), int(self.batch.lengths[caption]))):
            read, wanted = [pieces[place], str(inputs[place])], [pieces[place + 1], str(targets[place])]
            ways = [_read_as(pattern, caption, place) if mask[place] else "" for pattern in texts.values()]
            rows.append([str(place), *read, *wanted, _supervised(mask[place], real[place]), *ways])
        return rows

    def _pieces(self, caption: int) -> list[str]:
        """Each token of a caption, padding included: quoted text with the space before it, or what it is for."""
        length = int(self.batch.lengths[caption])
        tokens, padding = self.batch.tokens[caption, :length].tolist(), self.batch.tokens.shape[1] - length
        pieces, text = ["<start>"], tokens[:1]
        for token in tokens[1:]:
            if token == self.tokenizer.end_id:
                pieces, text = [*pieces, "<end>"], tokens[:1]  # of a source or a turn: another text begins
                continue
            before, after = self.tokenizer.decode(text), self.tokenizer.decode([*text, token])
            grown = after.startswith(before) and after != before
            # Bytes that are no whole character yet do not grow the text.
            pieces.append(repr(after[len(before) :] if grown else self.tokenizer.decode([token])))
            text = [*text, token]
        return [*pieces, *["<pad>"] * padding]

    def _pixels(self, row: int) -> str:
        """``image 3 x 32 x 32 uint8, values 0 to 255, mean 201.3``."""
        image = self.batch.images[row]
        size = " x ".join(map(str, image.shape))
        kind = str(image.dtype).removeprefix("torch.")
        return f"image {size} {kind}, values {image.min()} to {image.max()}, mean {image.float().mean():.1f}"

    def _full_length(self, caption: int) -> int:
        return whole_length(self.tokenizer, self.batch.captions[caption])

    def _is_cut(self, caption: int) -> bool:
        return self._full_length(caption) > self.max_tokens

    def _totals(self) -> str:
        batch, captions = self.batch, range(len(self.batch.lengths))
        text_only = int((batch.image_index == TEXT_ONLY).sum())
        languages = sorted({words.language or "none" for words in batch.captions})
        rows = [
            ["images", f"{len(batch.images):,}", f"{int(Keys.of(batch).has_caption.sum()):,} with a caption"],
            ["corrupt images", f"{len(batch.corrupt):,}", "; ".join(batch.corrupt[:EXAMPLES])],
            ["captions", f"{len(captions):,}", f"{text_only:,} text only; languages: {', '.join(languages) or 'none'}"],
            ["supervised tokens", f"{int(batch.num_targets):,}", "ends included, starts and padding not"],
            ["cut captions", f"{sum(map(self._is_cut, captions)):,}", f"longer than data.max_tokens={self.max_tokens}"],
            ["unknown pieces", f"{self._unknown():,}", "of captions, left out by the tokenizer"],
        ]
        for name, part in self.objective.named_parts().items():
            items = items_of(part, batch, StepKey(self.seed))
            said = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in items.items())
            rows.append([name, "", said or "counts nothing by itself"])
        return "\n".join(_aligned([["this batch", "", ""], *rows]))

    def _unknown(self) -> int:
        read = [turn.read for words in self.batch.captions for turn in words.turns]
        written = [turn.written for words in self.batch.captions for turn in words.turns]
        sources = [words.source for words in self.batch.captions if words.source is not None]
        texts = [*(words.text for words in self.batch.captions), *sources, *read, *written]
        return sum(map(self.tokenizer.count_unknown, texts))


def _supervised(target: bool, real: bool) -> str:
    """Of a source and the turns before it, what the model reads is no target."""
    return "yes" if target else "no: it is read" if real else "no"


def _read(words: Caption) -> list[str]:
    """What a caption answers, a turn a line."""
    turns = [f"  after reading {turn.read!r} and writing {turn.written!r}" for turn in words.turns]
    return turns if words.source is None else [*turns, f"  an answer to {words.source!r}"]


def _read_as(pattern: TextPattern, caption: int, place: int) -> str:
    """What a pattern makes of an input: replaced by the mask, seen from everywhere, or read from left to right."""
    if pattern.masked is not None and bool(pattern.masked[caption, place]):
        return "masked"
    return "visible" if place < int(pattern.visible[caption]) else "causal"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns, two spaces in."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
