"""``python -m mmlm.bench generation``: captions by mmlm and by open_clip's ``CoCa.generate``, with the same weights.

Both take turns, ours in this process and theirs in one of its own, whose Python has the version of transformers that
open_clip's generation needs. Times are processor seconds from pixels to tokens, so that other work on the machine
hardly counts.
"""

import json
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor

from mmlm.bench import generation_models
from mmlm.bench.cells import check_out
from mmlm.bench.generation_models import coca_of, model_config
from mmlm.bench.settings import GenerationBenchSettings
from mmlm.core.errors import UserError
from mmlm.core.ranges import check_counts
from mmlm.evaluation.generation.generate import generate
from mmlm.evaluation.generation.logit_rules import LogitRules
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.generation.task import Task
from mmlm.model.encoders.timm_vit import TimmVit
from mmlm.model.model import ImageFeatures, ImageTextModel
from mmlm.record.environment import device_name

START, END = 49406, 49407
"""open_clip's ids."""
SHORTEST = 6
"""Tokens that a caption of open_clip's has at least by default: a start, ``min_seq_len`` with it, and an end."""
EARLY, LATE = range(4, 9), range(71, 76)
"""Steps around the 5th and the 73rd token, of which the cost of a token is taken."""


@dataclass(frozen=True)
class Turn:
    """One generation."""

    seconds: float
    tokens: list[list[int]]
    """Of each image, start included."""


def measure_generation(settings: GenerationBenchSettings, argv: Sequence[str]) -> int:
    """Measures and prints the tables; returns the exit status. The page names ``argv`` as its command."""
    check_counts({"batch_size": settings.batch_size, "rounds": settings.rounds})
    for key, values, least in (("tokens", settings.tokens, SHORTEST + 1), ("beams", settings.beams, 1)):
        if not values or min(values) < least:
            raise UserError(f"{key}: {values} must be at least {least}")
    check_out(settings.out)
    lines = []
    for line in _document(settings, argv):
        print(line, flush=True)
        lines.append(line)
        if settings.out is not None:
            Path(settings.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _document(settings: GenerationBenchSettings, argv: Sequence[str]) -> Iterator[str]:
    """The lines of the whole text, each as soon as it is measured."""
    config = model_config(settings.model)
    yield f"`{shlex.join(['python', '-m', 'mmlm.bench', 'generation', *argv])}`"
    yield ""
    yield (
        f"{device_name(torch.device('cpu'))}, PyTorch {torch.__version__}, float32. "
        f"{settings.batch_size} images, random weights of the sizes of {settings.model}. Processor seconds from pixels "
        f"to tokens, medians of {settings.rounds} that took turns; ×: theirs over ours, of each pair."
    )
    yield ""
    with tempfile.TemporaryDirectory() as folder:
        images = torch.rand(settings.batch_size, 3, *[generation_models.image_size(config)] * 2)
        images = (images * 255).round().to(torch.uint8)
        with Peer(settings.peer, config, Path(folder), torch.get_num_threads()) as peer:
            model = coca_of(config, torch.load(Path(folder) / generation_models.WEIGHTS, weights_only=True))
            # Theirs are normalised outside of the model, as by their transform.
            torch.save(cast(TimmVit, model.encoder).normalize(images), Path(folder) / generation_models.IMAGES)
            yield "| tokens | beams | seconds | open_clip | × | lowest × | greedy tokens identical |"
            yield "|--:|--:|--:|--:|--:|--:|---|"
            for tokens in settings.tokens:
                for beams in settings.beams:
                    yield _row(model, peer, images, tokens, beams, settings.rounds)
    yield ""
    yield _cost_of_a_token(model, images, settings.rounds)


def _row(model: ImageTextModel, peer: "Peer", images: Tensor, tokens: int, beams: int, rounds: int) -> str:
    """Both in turn, after a short warm-up of each."""
    peer.turn(SHORTEST + 1, 1)
    _ours(model, images, SHORTEST + 1, 1)
    pairs = [(_ours(model, images, tokens, beams), peer.turn(tokens, beams)) for _ in range(rounds)]
    ours, theirs = ([turn.seconds for turn in side] for side in zip(*pairs, strict=True))
    ratios = [two / one for one, two in zip(ours, theirs, strict=True)]
    same = "a different search"
    if beams == 1:
        # open_clip puts the end in the place of the last token, whatever the model says.
        equal = [a[: tokens - 1] == b[: tokens - 1] for one, two in pairs for a, b in _both(one, two)]
        same = f"{sum(equal)} of {len(equal)}"
    cells = [f"{statistics.median(values):.2f}" for values in (ours, theirs)]
    cells += [f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}"]
    return f"| {tokens} | {beams} | {' | '.join(cells)} | {same} |"


def _both(one: Turn, two: Turn) -> Iterator[tuple[list[int], list[int]]]:
    """The captions of each image up to their ends; theirs have padding behind."""
    for a, b in zip(one.tokens, two.tokens, strict=True):
        yield a, b[: b.index(END) + 1] if END in b else b


def _ours(model: "ImageTextModel | Timed", images: Tensor, tokens: int, beams: int) -> Turn:
    rules = LogitRules(END, min_tokens=SHORTEST)
    task = Task(torch.arange(len(images)), (START,), END, tokens, rules)
    begun = time.process_time()
    with torch.no_grad():
        features = model.encode_image(images)
    found = generate(model, features, task, GenerationSettings(beams=beams))
    return Turn(time.process_time() - begun, [[START, *of_image[0].tokens] for of_image in found])


@dataclass
class Timed:
    """A model of which every step of decoding is timed."""

    model: ImageTextModel
    seconds: list[float] = field(default_factory=list)
    """Processor seconds of each call of ``decode``."""

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """As the model's."""
        return self.model.encode_image(images)

    def start_decoding(self, features: ImageFeatures, room: int | None = None) -> Any:
        """As the model's."""
        return self.model.start_decoding(features, room)

    def decode(self, tokens: Tensor, cache: Any) -> Tensor:
        """As the model's."""
        begun = time.process_time()
        logits = self.model.decode(tokens, cache)
        self.seconds.append(time.process_time() - begun)
        return logits


def _cost_of_a_token(model: ImageTextModel, images: Tensor, rounds: int) -> str:
    """How much more a late token costs than an early one, in one greedy generation."""
    growth = []
    for _ in range(max(rounds, 3)):
        timed = Timed(model)
        _ours(timed, images, LATE[-1] + 1, 1)
        if len(timed.seconds) < LATE[-1]:
            return "The cost of a token was not measured: all captions ended early."
        early, late = (statistics.median(timed.seconds[place - 1] for place in span) for span in (EARLY, LATE))
        growth.append(late / early)
    return (
        f"A late token (median of steps {LATE[0]} to {LATE[-1]}) costs {statistics.median(growth):.2f} times an early "
        f"one (steps {EARLY[0]} to {EARLY[-1]}), greedy; of {len(growth)} generations {min(growth):.2f} to "
        f"{max(growth):.2f}."
    )


class Peer:
    """open_clip in a process of its own. Raises UserError if it cannot be started."""

    def __init__(self, python: str, config: Mapping[str, Any], folder: Path, threads: int) -> None:
        sizes = folder / "config.json"
        sizes.write_text(json.dumps(config), encoding="utf-8")
        script = Path(__file__).with_name("open_clip_generate.py")
        self._python = python
        self._process: subprocess.Popen[str]
        try:
            self._process = subprocess.Popen(
                [python, str(script), str(sizes), str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise UserError(f"peer: {python} cannot be run ({error.strerror}); give the path of a Python") from None

    def __enter__(self) -> Self:
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The peer ends when nothing more can be asked."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "both are pipes"
            pipe.close()
        self._process.terminate()
        self._process.wait()

    def turn(self, tokens: int, beams: int) -> Turn:
        """One generation of ``tokens`` tokens, start included."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(json.dumps({"tokens": tokens, "beams": beams}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Turn(float(answer["seconds"]), answer["tokens"])

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None, "it is a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"peer: {self._python} ended without an answer (what it said stands above); it needs torch, "
                "open_clip_torch==3.3.0 and transformers==4.56.2"
            )
        answer: Mapping[str, Any] = json.loads(line)
        return answer
