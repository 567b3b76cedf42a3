"""Reads data sets once and tells what is in them: on the terminal, as a page, and as lists of ids."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from mmlm.cli.arguments import LintArguments
from mmlm.cli.named_paths import named_paths
from mmlm.core.batch import Caption
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.keyed_random import keyed_order
from mmlm.core.wording import printable
from mmlm.data.look import Look, alike, equal_pixels
from mmlm.data.recognise import recognise
from mmlm.data.sources import Source
from mmlm.data.survey import Surveyed, reason_of, survey
from mmlm.data.text_survey import TokenCosts, token_costs
from mmlm.data.tokenizer import Tokenizer, normalise_text
from mmlm.data.tokenizers.byte_pair import BytePair
from mmlm.record.console import Console
from mmlm.record.folder import write_whole
from mmlm.reports.contact_sheet import thumbnail_uri
from mmlm.reports.lint_page import Finding, Section, ShownExample, lint_page

PAGE, PROBLEMS, DROP, ALIKE = "lint.html", "problems.jsonl", "drop.txt", "alike.txt"
_NAMED = 5
"""Examples of a finding that are named."""
_PICTURES = 24
"""Examples of a set that the page shows."""
_PAIRS = 12
"""Pairs of images that the page shows."""
_UNCUT = 100_000
"""Tokens after which a caption is cut when tokens are counted."""


@dataclass(frozen=True)
class _Set:
    """A data set that was read."""

    name: str
    source: Source
    examples: Sequence[Surveyed]
    seconds: float

    def seen(self) -> list[Surveyed]:
        """The examples whose image could be read."""
        return [example for example in self.examples if example.look is not None]


def lint(arguments: LintArguments) -> int:
    """Prints what was found and writes the files; returns the exit status. Raises UserError."""
    if arguments.data is None:
        raise UserError(
            "data: give data=PATH, images with captions, or run=DIR, a run whose captions are to be doubted"
        )
    for option, given in (("device", arguments.device != "auto"), ("plugins", bool(arguments.plugins))):
        if given:
            raise UserError(f"{option}: is for run=, and no model reads data=; leave it out")
    threads = (os.cpu_count() or 1) if arguments.threads is None else arguments.threads
    for name, value, least in (("threads", threads, 1), ("max_tokens", arguments.max_tokens, 3)):
        if value < least:
            raise UserError(f"{name}: {value} must be at least {least}")
    out = Path(arguments.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror}); give another folder") from error
    sets: list[_Set] = []
    for name, path in named_paths("data", arguments.data).items():
        found = recognise(path)
        print(f"{name}: {path}, taken as {found.what}: {len(found.source):,} examples")
        sets.append(_read(name, found.source, threads))
    sections = []
    for one in sets:
        costs = _costs(one, arguments)
        section = _section(one, costs, threads, arguments)
        sections.append(section)
        _print(section)
    shared = [_overlap(sets[0], other, arguments.alike) for other in sets[1:]]
    for overlap in shared:
        sections.append(overlap.section)
        _print(overlap.section)
    drop = sorted({id for overlap in shared for id in overlap.equal})
    similar = sorted({id for overlap in shared for id in overlap.alike})
    # Together at the end: a list is never that of another run of the command than the page.
    write_whole(out / PROBLEMS, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in _problems(sets)))
    write_whole(out / DROP, "".join(f"{id}\n" for id in drop))
    write_whole(out / ALIKE, "".join(f"{id}\n" for id in similar))
    write_whole(out / PAGE, lint_page(", ".join(printable(one.name) for one in sets), sections))
    print(f"\npage: {out / PAGE}\nevery problem: {out / PROBLEMS}")
    if shared:
        print(f"ids to leave out of {sets[0].name}: {len(drop):,} in {out / DROP}, {len(similar):,} in {out / ALIKE}")
    return 0


def _read(name: str, source: Source, threads: int) -> _Set:
    started, total = time.monotonic(), len(source)
    with Console(sys.stderr).activity() as activity:
        examples = list(survey(source, threads, lambda done: activity.update(f"{name}: {done:,} of {total:,} read")))
    return _Set(name, source, examples, time.monotonic() - started)


# One set


def _costs(one: _Set, arguments: LintArguments) -> TokenCosts | None:
    """What the captions cost; None if there are none, or if no tokenizer of that size can be made."""
    captions = [caption for example in one.examples for caption in example.captions]
    if not captions:
        return None
    tokenizer: Tokenizer = BytePair(arguments.vocab_size, sorted({c.language for c in captions if c.language}))
    tokenizer.fit(captions)
    # One caption an example, as training draws one by default; the first stands for all.
    first = [example.captions[0] for example in one.examples if example.captions]
    lengths = [len(tokenizer.encode(caption.text, caption.language, _UNCUT)) for caption in first]
    return token_costs(lengths, arguments.max_tokens)


def _section(one: _Set, costs: TokenCosts | None, threads: int, arguments: LintArguments) -> Section:
    seen = one.seen()
    looks = [example.look for example in seen if example.look is not None]
    findings = [*_grouped(one), *_repeated_captions(one)]
    equal = equal_pixels(looks)
    pairs = [(seen[group[0]], seen[group[1]], "equal pixels") for group in equal]
    if equal:
        names = tuple(" = ".join(seen[place].id for place in group) for group in equal[:_NAMED])
        findings.append(Finding("groups of images with equal pixels", len(equal), names))
    if arguments.alike:
        near = [(seen[a], seen[b]) for a, b in alike(looks)]
        pairs += [(a, b, "look alike") for a, b in near]
        if near:
            names = tuple(f"{a.id} ~ {b.id}" for a, b in near[:_NAMED])
            findings.append(Finding("pairs of images that look alike", len(near), names))
    shown = [seen[i] for i in keyed_order(0, 0, len(seen), torch.arange(min(len(seen), _PICTURES))).tolist()]
    return Section(
        one.name,
        tuple(_facts(one, costs, threads, arguments.max_tokens)),
        tuple(findings),
        tuple((_shown(one, a), _shown(one, b), common) for a, b, common in pairs[:_PAIRS]),
        tuple(_shown(one, example) for example in shown),
    )


def _facts(one: _Set, costs: TokenCosts | None, threads: int, max_tokens: int) -> Iterator[tuple[str, str]]:
    sizes = [example.size for example in one.examples if example.size is not None]
    captions = sum(len(example.captions) for example in one.examples)
    yield "examples", f"{len(one.examples):,}"
    yield "images", f"{len(sizes):,}"
    yield "captions", f"{captions:,}"
    if sizes:
        widths, heights = zip(*sizes, strict=True)
        ranges = f"{min(widths)} to {max(widths)} x {min(heights)} to {max(heights)}"
        yield "pixels", f"{median(widths):.0f} x {median(heights):.0f} (median), {ranges}"
    if costs is not None:
        yield "tokens of a caption", f"{costs.median} (median), {costs.longest} (longest)"
        yield f"cut at {max_tokens} tokens", f"{costs.cut:,} captions, {costs.lost:,} tokens"
        yield "padding in batches of 128", f"{100 * costs.padding:.1f}% without packing"
    rate = len(one.examples) / max(one.seconds, 1e-9)
    yield "reading", f"{rate:,.0f} examples/s by {threads} threads"


def _grouped(one: _Set) -> Iterator[Finding]:
    """Problems and remarks, each with how many examples have it, the most frequent first."""
    of: dict[str, list[str]] = {}
    for example in one.examples:
        if example.problem is not None:
            of.setdefault(f"cannot be read: {reason_of(example.problem)}", []).append(
                f"{example.id}: {example.problem}"
            )
        for remark in example.remarks:
            of.setdefault(f"with a remark: {remark}", []).append(example.id)
    for what, names in sorted(of.items(), key=lambda item: -len(item[1])):
        yield Finding(what, len(names), tuple(map(printable, names[:_NAMED])))


def _repeated_captions(one: _Set) -> Iterator[Finding]:
    """The captions that several examples have: a contrastive loss takes them as positives of each other."""
    texts = Counter(text for example in one.examples for text in {_plain(c) for c in example.captions})
    repeated = [(text, count) for text, count in texts.most_common() if count > 1]
    if repeated:
        names = tuple(printable(f"{count:,} times: {text}") for text, count in repeated[:_NAMED])
        yield Finding("captions that several examples have", len(repeated), names)


def _shown(one: _Set, example: Surveyed) -> ShownExample:
    captions = tuple(printable(caption.text) for caption in example.captions)
    try:
        image = one.source[example.index].image
    except CorruptImage:  # it could be read a minute ago
        image = None
    return ShownExample(printable(example.id), "" if image is None else thumbnail_uri(image), captions)


# Two sets


@dataclass(frozen=True)
class _Overlap:
    """What two sets have in common."""

    section: Section
    equal: Sequence[str]
    """Ids of the first set whose pixels the other has too."""
    alike: Sequence[str]
    """Ids of the first set that look like an image of the other."""


def _overlap(first: _Set, other: _Set, near_too: bool) -> _Overlap:
    ours, theirs = first.seen(), other.seen()
    looks: list[Look] = [example.look for example in [*ours, *theirs] if example.look is not None]
    both = [*ours, *theirs]
    equal, near = [], []
    for group in equal_pixels(looks):
        here, there = ([i for i in group if (i < len(ours)) is mine] for mine in (True, False))
        equal += [(both[i], both[there[0]]) for i in here if there]
    if near_too:
        near = [(both[a], both[b]) for a, b in alike(looks) if a < len(ours) <= b]
    texts = {_plain(caption) for example in first.examples for caption in example.captions}
    seen_texts = [e for e in other.examples if e.captions and all(_plain(caption) in texts for caption in e.captions)]
    findings = tuple(
        Finding(what, len(found), tuple(printable(name) for name in found[:_NAMED]))
        for what, found in (
            (f"images of {first.name} are in {other.name}, pixel for pixel", [f"{a.id} = {b.id}" for a, b in equal]),
            (f"images of {first.name} look like one of {other.name}", [f"{a.id} ~ {b.id}" for a, b in near]),
            (f"examples of {other.name} have only captions of {first.name}", [e.id for e in seen_texts]),
        )
        if found
    )
    pairs = [(a, b, "equal pixels") for a, b in equal] + [(a, b, "look alike") for a, b in near]
    shown = tuple((_shown(first, a), _shown(other, b), common) for a, b, common in pairs[:_PAIRS])
    facts = (
        ("equal images", f"{len(equal):,}"),
        ("images that look alike", f"{len(near):,}" if near_too else "not looked for"),
        ("examples with known captions only", f"{len(seen_texts):,}"),
    )
    section = Section(f"{first.name} and {other.name}", facts, findings, shown)
    return _Overlap(section, [a.id for a, _ in equal], [a.id for a, _ in near])


def _plain(caption: Caption) -> str:
    """A caption without what people do not see as a difference."""
    return normalise_text(caption.text).casefold()


# What is written


def _print(section: Section) -> None:
    print(f"\n{printable(section.title)}")
    width = max(len(name) for name, _ in section.facts)
    for name, value in section.facts:
        print(f"  {name:<{width}}  {value}")
    for finding in section.findings:
        print(f"  {finding.count:,} {finding.what}; first: {finding.examples[0]}")


def _problems(sets: Sequence[_Set]) -> Iterator[Mapping[str, str]]:
    """A line for each problem and remark."""
    for one in sets:
        for example in one.examples:
            for what in (*filter(None, [example.problem]), *example.remarks):
                yield {"set": one.name, "id": example.id, "what": what}
