"""The report's section of sample images, split by split: captions, attention, nearest captions, nearest images.

For a model without a decoder the first grid shows the nearest caption of each image instead of a generated one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TypeVar

from mmlm.reports.charts import heat_map, peak_share
from mmlm.reports.samples import Query, SampleExample, SplitSamples
from mmlm.reports.tabs import tabbed

Shown = TypeVar("Shown", SampleExample, Query)

SHOWN = 12
"""Examples of a block that are in view; the others are folded away."""


def samples_section(samples: Mapping[str, SplitSamples]) -> str:
    """A tab for each split. Without JavaScript, and on paper, the splits stand one below the other."""
    return tabbed("samples", {name: _panel(split) for name, split in samples.items()})


def mark_words(generated: str, captions: Sequence[str]) -> str:
    """``generated`` as HTML with each word marked: a hit if it stands in one of the true ``captions``, else a miss.

    Words are compared without case and punctuation.
    """
    true_words = {_bare(word) for caption in captions for word in caption.split()}
    return " ".join(
        f'<span class="{"hit" if _bare(word) in true_words else "miss"}">{escape(word)}</span>'
        for word in generated.split()
    )


def _bare(word: str) -> str:
    """A word in lower case and without punctuation; a word that is all punctuation stays as it is."""
    return re.sub(r"\W", "", word).casefold() or word


def _panel(split: SplitSamples) -> str:
    looked = [example for example in split.examples if example.attention and example.attention.words]
    near = [example for example in split.examples if example.nearest_captions]
    return "".join((
        _captions(split.examples) if any(e.generated is not None for e in split.examples) else _found(split.examples),
        _extremes(split.extremes),
        _block(
            "Where the decoder looked",
            "The image with a true caption, then each word as it was written: attention over the image's patches, "
            'smoothed, from an even share or less (clear)<i class="scale"></i>to the strongest patch of the example.',
            "attentions",
            looked,
            _attention,
        ),
        _block(
            "Nearest captions",
            "Captions of the split closest to each image; the bar is the cosine similarity, "
            '<span class="tick">✓</span> a true caption.',
            "neighbours",
            near,
            _neighbours,
        ),
        _block(
            "Text to image",
            'Images of the split closest to a caption, nearest first; <span class="tick">✓</span> one of its own.',
            "queries",
            split.queries,
            _query,
        ),
    ))  # fmt: skip


def _block(title: str, note: str, kind: str, items: Sequence[Shown], draw: Callable[[Shown], str]) -> str:
    """A titled grid of ``items``, those after the first ``SHOWN`` folded; empty without items. ``note`` is HTML."""
    if not items:
        return ""
    first, rest = "".join(map(draw, items[:SHOWN])), "".join(map(draw, items[SHOWN:]))
    fold = (
        f'<details class="more"><summary>{len(items) - SHOWN} more</summary><div class="{kind}">{rest}</div></details>'
        if rest
        else ""
    )
    return f'<div><h3>{title}</h3><p class="note">{note}</p><div class="{kind}">{first}</div>{fold}</div>'


def _captions(examples: Sequence[SampleExample]) -> str:
    """Each image with the caption that the decoder wrote."""
    exact = sum(example.exact for example in examples)
    note = (
        f'<span class="tick">✓</span> exactly right: {exact} of these {len(examples)}; otherwise words that a true '
        'caption has <span class="generated"><span class="hit">are green</span>, <span class="miss">others '
        "orange</span></span>, and the true caption stands below."
    )
    cards = [_card(example, example.generated or "", example.exact) for example in examples]
    return _gallery("Generated captions", note, cards, exact, ("exact", "wrong"))


def _found(examples: Sequence[SampleExample]) -> str:
    """Each image with its nearest caption of the split, for a model without a decoder."""
    if not examples:
        return ""
    nearest = [example.nearest_captions[0] if example.nearest_captions else None for example in examples]
    found = sum(near is not None and near.match for near in nearest)
    note = (
        f'The caption of the split that is nearest to each image; <span class="tick">✓</span> a true one: {found} of '
        f'these {len(examples)}. Otherwise words that a true caption has <span class="generated"><span class="hit">are '
        'green</span>, <span class="miss">others orange</span></span>, and the true caption stands below.'
    )
    cards = [
        _card(example, near.text if near else "", near is not None and near.match)
        for example, near in zip(examples, nearest, strict=True)
    ]
    return _gallery("Images and their nearest caption", note, cards, found, ("found", "missed"))


EXTREMES = {
    "worst": "Worst: the true caption is far down the list",
    "typical": "Typical: in the middle of all images",
    "best": "Best: the true caption comes first, or nearly so",
}
"""The heading of each kind of extreme examples."""


def _extremes(extremes: Mapping[str, Sequence[SampleExample]]) -> str:
    """The worst, typical and best images, by the rank of their true caption."""
    blocks = []
    for kind, heading in EXTREMES.items():
        cards = [_extreme_card(example) for example in extremes.get(kind, ())]
        if cards:
            blocks.append(f'<h4>{heading}</h4><div class="gallery">{"".join(cards)}</div>')
    if not blocks:
        return ""
    note = "Ordered by the place of the true caption among all captions of the split, 1 being the nearest."
    return f'<div><h3>Worst, typical and best</h3><p class="note">{note}</p>{"".join(blocks)}</div>'


def _extreme_card(example: SampleExample) -> str:
    """The caption that was written; or the nearest one, where none was."""
    if example.generated is not None:
        return _card(example, example.generated, example.exact)
    near = example.nearest_captions[0] if example.nearest_captions else None
    return _card(example, near.text if near else "", near is not None and near.match)


def _rank(rank: int | None, title: str) -> str:
    """The rank of the true answer as a small mark; empty where it is not known."""
    return "" if rank is None else f'<span class="rank" title="{title}">rank {rank:,}</span>'


def _gallery(title: str, note: str, cards: Sequence[str], right: int, names: tuple[str, str]) -> str:
    """A grid of cards with buttons for all cards, the ``right`` ones and the others; ``names`` label the last two."""
    counts = (("all", "all", len(cards)), ("exact", names[0], right), ("wrong", names[1], len(cards) - right))
    buttons = "".join(
        f'<button data-filter="{kind}" aria-pressed="{"true" if kind == "all" else "false"}">{name} {count}</button>'
        for kind, name, count in counts
    )
    return (
        f'<div class="captions"><div class="titled"><h3>{title}</h3><div class="filter">{buttons}</div></div>'
        f'<p class="note">{note}</p><div class="gallery">{"".join(cards)}</div></div>'
    )


def _card(example: SampleExample, said: str, right: bool) -> str:
    """An image with the caption ``said``, marked as right or word by word, and the true captions."""
    if right:
        marked = f'<span class="tick" title="right">✓</span> {escape(said)}'
    else:
        marked = mark_words(said, example.captions) or '<span class="miss">(nothing)</span>'
    # A right caption is a true one too, and is not shown a second time; the other true captions are.
    others = [text for text in example.captions if not (right and text == said)]
    truth = "".join(f'<p class="truth" dir="auto">{escape(text)}</p>' for text in others[:3])
    return (
        f'<figure class="{"exact" if right else "wrong"}" title="{escape(example.id)}">'
        f'<img src="{example.image}" alt="{escape(", ".join(example.captions))}">'
        f'<figcaption><p class="generated" dir="auto">{marked}</p>{truth}'
        f"{_rank(example.rank, 'place of the true caption among all captions')}</figcaption></figure>"
    )


def _attention(example: SampleExample) -> str:
    looked = example.attention
    assert looked is not None, "only examples with attention are drawn here"
    full = peak_share(looked.maps)
    words = "".join(
        f'<figure><div class="look"><i></i><img src="{heat_map(weights, looked.grid, full)}" alt=""></div>'
        f'<figcaption dir="auto">{escape(word)}</figcaption></figure>'
        for word, weights in zip(looked.words, looked.maps, strict=True)
    )
    truth = escape(example.captions[0] if example.captions else example.id)
    # The image is given once, as a CSS variable that every word's picture inherits.
    return (
        f'<div class="attention" style="--image:url({example.image})"><figure class="source">'
        f'<div class="picture" role="img" aria-label="{truth}"></div>'
        f'<figcaption dir="auto">{truth}</figcaption></figure>{words}</div>'
    )


def _neighbours(example: SampleExample) -> str:
    rows = "".join(
        f'<li{" class=match" if near.match else ""} style="--similarity:{min(max(near.similarity, 0), 1):.2f}">'
        f'<span dir="auto">{escape(near.text)}{" ✓" if near.match else ""}</span>'
        f'<span class="number">{near.similarity:.2f}</span></li>'
        for near in example.nearest_captions
    )
    alt = escape(", ".join(example.captions))
    rank = _rank(example.rank, "place of the true caption among all captions")
    picture = f'<div><img src="{example.image}" alt="{alt}" title="{alt}">{rank}</div>'
    return f'<div class="neighbour">{picture}<ol>{rows}</ol></div>'


def _query(query: Query) -> str:
    images = "".join(
        f'<li{" class=match" if image.match else ""}><img src="{image.image}" alt="">'
        f"{image.similarity:.2f}{' ✓' if image.match else ''}</li>"
        for image in query.images
    )
    rank = _rank(query.rank, "place of its best image among all images")
    return f'<div class="query"><p><bdi>{escape(query.caption)}</bdi> {rank}</p><ol>{images}</ol></div>'
