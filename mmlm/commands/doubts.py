"""Which captions of a run's training data are doubtful: on the terminal, as a page, as a table, and as lists of ids."""

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmlm.cli.arguments import LintArguments
from mmlm.cli.runs import chosen_run
from mmlm.core.errors import CorruptImage, UserError
from mmlm.core.views import EMBED
from mmlm.core.wording import printable
from mmlm.data.evaluation_batches import EvaluationBatches
from mmlm.data.tokenizer import normalise_text
from mmlm.evaluation.caption_fit import CaptionFit, Shuffled, caption_fit
from mmlm.evaluation.doubts import Doubts, doubts_of
from mmlm.experiment.build import build_objective, build_source, build_transform
from mmlm.experiment.device import choose_device
from mmlm.experiment.saved_run import TrainedRun, kept_checkpoints, load_checkpoint, load_run
from mmlm.record.console import Console
from mmlm.record.environment import working_folder_of_run
from mmlm.record.folder import write_whole, write_whole_bytes
from mmlm.reports.contact_sheet import thumbnail_uri
from mmlm.reports.lint_page import Finding, Section, ShownExample, lint_page

PAGE, TABLE, MISLABELLED, REPEATED = "doubts.html", "doubts.parquet", "mislabelled.txt", "repeated.txt"
TOGETHER = 128
"""Examples whose captions are compared with each other, at most."""
_PICTURES = 24
"""Captions of a kind that the page shows."""
_NAMED = 5
"""Examples of a finding that are named."""
_SIMILARITIES = "similarity to the image, less that of the best text of another example"
_LIKELIHOODS = "nats by which a caption is likelier with its image than with another"


def lint_run(arguments: LintArguments) -> int:
    """Scores the training data of the run, prints what is doubtful and writes the files; returns the exit status.

    One process; data are read and encoded once for each checkpoint. Raises UserError.
    """
    _refuse_unused(arguments)
    out = Path(arguments.out).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror}); give another folder") from error
    folder = chosen_run(str(arguments.run)).resolve()
    run = load_run(str(folder), choose_device(arguments.device), arguments.plugins)
    # Whether similarities mean anything: an objective has asked for embeddings.
    compares = EMBED in build_objective(run.config).views
    if not compares and run.model.decoder is None:
        raise UserError(f"run: {folder} has learned neither similarities nor captions; give another run")
    checkpoints = kept_checkpoints(folder)
    # The run's own relative paths begin where it was trained.
    place = working_folder_of_run(folder)
    with contextlib.nullcontext() if place is None else contextlib.chdir(place):
        source = Shuffled(build_source(run.config, run.config.data.train, "data.train"))
        with Console(sys.stderr).activity() as activity:
            fits = [
                _fit(
                    load_checkpoint(run, checkpoint),
                    source,
                    compares,
                    activity.update,
                    f"{number} of {len(checkpoints)}",
                )
                for number, checkpoint in enumerate(checkpoints, 1)
            ]
        doubts = doubts_of(fits)
        sections = list(_sections(source, fits, doubts, compares))
    for section in sections:
        print(f"\n{section.title}")
        for name, value in section.facts:
            print(f"  {name}: {value}")
        for finding in section.findings:
            print(f"  {finding.count:,} {finding.what}; first: {finding.examples[0]}")
    content = io.BytesIO()
    pq.write_table(_table(fits, doubts), content, compression="zstd")
    write_whole_bytes(out / TABLE, content.getvalue())
    write_whole(out / MISLABELLED, "".join(f"{id}\n" for id in doubts.mislabelled_ids))
    write_whole(out / REPEATED, "".join(f"{id}\n" for id in doubts.repeated_ids))
    write_whole(
        out / PAGE, lint_page(f"the captions of {printable(folder.parent.name)}, {printable(folder.name)}", sections)
    )
    print(f"\npage: {out / PAGE}\nevery caption at every checkpoint: {out / TABLE}")
    print(
        f"ids to leave out: {len(doubts.mislabelled_ids):,} likely mislabelled in {out / MISLABELLED}, "
        f"{len(doubts.repeated_ids):,} repeated in {out / REPEATED}"
    )
    return 0


def _refuse_unused(arguments: LintArguments) -> None:
    """Raises UserError for an option that does nothing with a run."""
    usual = LintArguments()
    for name, value, otherwise in (
        ("data", arguments.data, usual.data),
        ("threads", arguments.threads, usual.threads),
        ("max_tokens", arguments.max_tokens, usual.max_tokens),
        ("vocab_size", arguments.vocab_size, usual.vocab_size),
        ("alike", arguments.alike, usual.alike),
    ):
        if value != otherwise:
            raise UserError(f"{name}: does nothing with run=, which reads the run's own data; leave one of them out")


def _fit(run: TrainedRun, source: Shuffled, compares: bool, tell: Callable[[str], None], which: str) -> CaptionFit:
    """What the checkpoint that ``run`` holds makes of every caption."""
    config = run.config
    rounds = -(-len(source) // TOGETHER)
    batches = EvaluationBatches(
        source,
        run.tokenizer,
        build_transform(config),
        -(-len(source) // max(1, rounds)),  # of about equal size: a last batch of one would have nothing to compare
        config.data.max_tokens,
        choice=config.data.captions,
    )
    device = next(run.model.parameters()).device
    fit = caption_fit(
        run.step,
        run.model,
        run.tokenizer,
        batches,
        device,
        config.data.max_tokens,
        compares,
        lambda doing: tell(f"checkpoint {which}, {doing}"),
    )
    if not fit.ids:
        raise UserError("data.train: has no caption with an image that can be read")
    return fit


def _table(fits: Sequence[CaptionFit], doubts: Doubts) -> pa.Table:
    """A row a caption and checkpoint: step, id, caption, tokens, loss (nats), margin, and doubt over all of them."""
    return pa.concat_tables(
        pa.table(
            {
                "step": pa.array([fit.step] * len(fit.ids), pa.int64()),
                "id": pa.array(fit.ids, pa.string()),
                "caption": pa.array(fit.captions, pa.string()),
                "tokens": pa.array(fit.tokens.astype(np.int64)),
                "loss": pa.array(fit.loss, pa.float64(), from_pandas=True),  # NaN, as what is not known, becomes null
                "margin": pa.array(fit.margin, pa.float64(), from_pandas=True),
                "doubt": pa.array(doubts.doubt, pa.float64()),
            }
        )
        for fit in fits
    )


# The page


def _sections(source: Shuffled, fits: Sequence[CaptionFit], doubts: Doubts, compares: bool) -> Iterator[Section]:
    last = fits[-1]
    steps = ", ".join(f"{fit.step:,}" for fit in fits)
    facts = [("captions with an image", f"{len(last.ids):,}"), ("checkpoints, by step", steps)]
    facts += [
        ("margin", _SIMILARITIES if compares else _LIKELIHOODS),
        ("margin above 0, by checkpoint", ", ".join(_share(fit) for fit in fits)),
    ]
    if len(fits) == 1:
        facts.append(("forgotten", "needs several checkpoints: train with save_every and a larger keep_last"))
    yield Section("what was scored", tuple(facts))
    kinds = (
        ("likely mislabelled", doubts.mislabelled, "captions are outliers in loss for their length and in margin"),
        ("never learned", doubts.never, "captions more have no margin above 0 at any checkpoint"),
        ("forgotten", doubts.forgotten, "captions had a margin above 0 earlier, and have none at the last step"),
    )
    for title, rows, what in kinds:
        findings = [Finding(what, len(rows), tuple(_named(last, row) for row in rows[:_NAMED]))] if rows else []
        shown = tuple(_doubtful(source, fits, doubts, row) for row in rows[:_PICTURES])
        yield Section(title, () if rows else ((title, "none"),), tuple(findings), shown=shown)
    yield _repeated(source, last, doubts)


def _repeated(source: Shuffled, fit: CaptionFit, doubts: Doubts) -> Section:
    """Equal pixels, and captions that several examples have."""
    examples: dict[str, set[str]] = {}
    for id, caption in zip(fit.ids, fit.captions, strict=True):
        examples.setdefault(normalise_text(caption).casefold(), set()).add(id)
    counts = Counter({text: len(ids) for text, ids in examples.items() if len(ids) > 1}).most_common()
    findings = []
    if doubts.same:
        names = tuple(printable(" = ".join(group)) for group in doubts.same[:_NAMED])
        findings.append(Finding("groups of images with equal pixels", len(doubts.same), names))
    if counts:
        names = tuple(printable(f"{count:,} times: {text}") for text, count in counts[:_NAMED])
        findings.append(Finding("captions that several examples have", len(counts), names))
    again = set(doubts.repeated_ids)
    pairs = tuple(
        (
            _shown(source, group[0]),
            _shown(source, group[1]),
            "equal pixels and captions" if group[1] in again else "equal pixels, other captions",
        )
        for group in doubts.same[:_PICTURES]
    )
    return Section("duplicated", () if findings else (("duplicated", "none"),), tuple(findings), pairs)


def _share(fit: CaptionFit) -> str:
    known = fit.margin[~np.isnan(fit.margin)]
    return f"{100 * float((known > 0).mean()):.1f}%" if len(known) else "-"


def _named(fit: CaptionFit, row: int) -> str:
    return printable(f"{fit.ids[row]}: {fit.captions[row]}")


def _doubtful(source: Shuffled, fits: Sequence[CaptionFit], doubts: Doubts, row: int) -> ShownExample:
    """A caption with its picture, and its numbers beside the example's id."""
    fit = fits[-1]
    margins = ", ".join(f"{one.margin[row]:+.3f}" for one in fits)
    loss = "" if np.isnan(fit.loss[row]) else f"; {fit.loss[row]:.1f} nats in {fit.tokens[row]:.0f} tokens"
    shown = _shown(source, fit.ids[row])
    words = f"{shown.id}: doubt {doubts.doubt[row]:.1f}{loss}; margin {margins}"
    return replace(shown, id=words, captions=(printable(fit.captions[row]),))


def _shown(source: Shuffled, id: str) -> ShownExample:
    try:
        image = source.source[source.places[id]].image
    except CorruptImage:  # it could be read a minute ago
        image = None
    return ShownExample(printable(id), "" if image is None else thumbnail_uri(image))
