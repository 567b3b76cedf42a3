"""Evaluation shared out over ranks: real gloo processes find what one process finds, to the last bit.

``be_a_rank`` is what each rank does.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mmlm.core.batch import Caption, Example
from mmlm.core.distributed import rank
from mmlm.core.errors import CorruptImage, UserError
from mmlm.data.sources import Source
from mmlm.evaluation.evaluate import Evaluation
from mmlm.evaluation.evaluators import CaptionLoss, CaptionQuality, ImageUse, Retrieval, caption_losses
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.perplexity import Perplexity
from mmlm.evaluation.ranks import rank_positives
from mmlm.evaluation.sample_settings import SampleSettings
from mmlm.evaluation.split import EncodedBatch, EncodedSplit
from tests.equality import assert_same
from tests.evaluation.hand_made import ExampleList, evaluation_batches, fitted_tokenizer, small_model
from tests.ranks import run_ranks

BATCH_SIZE = 2
MAX_TOKENS = 24
"""Of a generated caption: a random model never ends one."""
NUM_EXAMPLES = 13
TEXT_ONLY_AT = (4, 5, 11)
"""The batch of 4 and 5 has no image at all."""
CORRUPT_AT = (1, 8, 9, 12)
"""Of the batches of 8 and 9 and of 12, nothing can be decoded."""
SAMPLES = SampleSettings(examples=6, queries=4, attention=3)


class Damaged(ExampleList):
    """Some examples cannot be decoded; remembers which were asked for."""

    def __init__(self, examples: list[Example], damaged: tuple[int, ...]) -> None:
        super().__init__(examples)
        self.damaged = damaged
        self.asked_for: list[int] = []

    def __getitem__(self, index: int) -> Example:
        self.asked_for.append(index)
        if index in self.damaged:
            raise CorruptImage(f"image{index}", "is damaged")
        return super().__getitem__(index)


def examples(count: int) -> list[Example]:
    """Images with one to three captions, some of them equal, and text without images."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        image = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
        captions = [Caption(f"picture {'and more ' * (number % 4)}{n}") for n in (number, number % 3, number % 5)]
        captions = tuple(captions[: 1 + number % 3])
        if number in TEXT_ONLY_AT:
            made.append(Example(f"text{number}", None, captions, "concept0"))
        else:
            made.append(Example(f"image{number}", image, captions, None if number % 2 else f"concept{number // 4}"))
    return made


def sources() -> dict[str, Damaged]:
    """More batches than ranks and not a multiple of them (5 of 7 can be decoded), fewer, and fewer than one a rank."""
    return {
        "many": Damaged(examples(NUM_EXAMPLES), CORRUPT_AT),
        "few": Damaged(examples(4), ()),
        "one": Damaged(examples(2), ()),
    }


def make_evaluation(tick: Callable[[str], None]) -> Evaluation:
    tokenizer = fitted_tokenizer(examples(NUM_EXAMPLES))
    evaluators = {
        "retrieval": Retrieval(),
        "loss": CaptionLoss(),
        "captioning": CaptionQuality(decoding=GenerationSettings(beams=2)),
        "perplexity": Perplexity(),
        "image_use_gap": ImageUse(),
    }
    return Evaluation(
        small_model(tokenizer),
        tokenizer,
        evaluators,
        MAX_TOKENS,
        torch.device("cpu"),
        contextlib.nullcontext,
        tick,
    )


def batches_of(evaluation: Evaluation, named: Mapping[str, Source]) -> dict[str, Any]:
    return {name: evaluation_batches(source, evaluation.tokenizer, BATCH_SIZE) for name, source in named.items()}


def facts(split: EncodedSplit) -> dict[str, Any]:
    """What every rank has to know of a split."""
    swap = torch.arange(len(split.image_ids)).roll(1)
    swapped = split.with_images_of(swap)
    paired = split.gallery.paired()
    # Chunks of two queries, so that ranks share them.
    ranked = rank_positives(paired.image_embedding, paired.text_embedding, paired.pairs, 2)
    return {
        "image_embedding": split.image_embedding,
        "image_index": split.image_index,
        "image_concept": split.image_concept,
        "lengths": split.lengths,
        "pairs": split.gallery.pairs,
        "text_embedding": split.gallery.text_embedding,
        "own texts": split.embed_texts([f"text {number}" for number in range(300)]),
        "concepts": [(concept.key, [text.text for text in concept.texts]) for concept in split.concepts],
        "ranks": ranked.best,
        "precisions": ranked.average_precision,
        "losses": caption_losses(split, None),
        "swapped losses": caption_losses(split, swap),
        "memory": torch.cat(split.over_batches(lambda item: item.features.memory)),
        "swapped memory": torch.cat(swapped.over_batches(lambda item: item.features.memory)),
        "swapped embedding": swapped.image_embedding,
        "pixels": torch.tensor(list(split.over_images(range(len(swap)), lambda row, image: int(image.sum())).items())),
        "names": [*split.gallery.texts, *split.image_ids, *(caption.text for caption in split.captions)],
        "references": [[caption.text for caption in captions] for captions in split.references],
        "corrupt": split.corrupt,
    }


def evaluated(folder: Path) -> dict[str, Any]:
    """Everything that one rank, or the only process, finds and writes in ``folder``."""
    said: list[str] = []
    evaluation, named = make_evaluation(said.append), sources()
    batches = batches_of(evaluation, named)
    written = evaluation.write(folder, 7, batches, SAMPLES, None)
    asked_for = {name: list(source.asked_for) for name, source in named.items()}
    return {
        "scores": written,
        "while training": evaluation.all_scores(batches),
        "facts": {name: facts(evaluation.encode(name, split)) for name, split in batches.items()},
        "corrupt": {name: split.corrupt for name, split in batches.items()},
        "asked for": asked_for,
        "said": said,
        "files": sorted(file.name for file in folder.iterdir()),
        "held": sum(item.features.memory is not None for item in evaluation.encode("many", batches["many"]).batches),
    }


def error_of(work: Callable[[], object]) -> str:
    """``Class: message`` of what ``work`` raises."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def failing_at(number: int, error: Exception) -> Callable[[EncodedBatch], int]:
    def work(item: EncodedBatch) -> int:
        if item.first == number:
            raise error
        return item.first

    return work


def errors(folder: Path) -> list[str]:
    """What is raised if something is wrong on one rank only, or with the split."""
    evaluation = make_evaluation(str)
    gone = Damaged(examples(6), tuple(range(6)))
    empty = Damaged([], ())
    batches = batches_of(evaluation, {"gone": gone, "empty": empty, "many": sources()["many"]})
    split = evaluation.encode("many", batches["many"])
    found = [error_of(lambda name=name: evaluation.encode(name, batches[name])) for name in ("gone", "empty")]
    second = split.batches[1].first  # of rank 1, if there are several
    found.append(error_of(lambda: split.over_batches(failing_at(second, UserError("captions: one is wrong")))))
    found.append(error_of(lambda: split.over_batches(failing_at(second, ValueError("a bug")))))
    found.append(error_of(lambda: split.over_images([99], lambda row, image: 0)))
    # Rank 0 alone writes, so it alone notices.
    found.append(error_of(lambda: evaluation.write(folder / "missing", 7, {"many": batches["many"]}, SAMPLES, None)))
    assert split.over_batches(lambda item: item.first) == [item.first for item in split.batches], "ranks keep step"
    return found


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Joins the group, evaluates, and leaves what it found in ``folder``."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=size, timeout=timedelta(seconds=120))
    own = folder / f"rank{rank()}"
    own.mkdir()
    torch.save(evaluated(own) | {"errors": errors(own)}, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """What one process finds, and the folder that it wrote."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    found = evaluated(folder)
    yield found | {"errors": errors(folder)}, folder
    torch.set_num_threads(threads)


def test_one_process_reads_everything_once_in_order(alone):
    found, folder = alone
    assert found["asked for"]["many"] == list(range(NUM_EXAMPLES))
    assert found["files"] == ["items.json", "manifest.jsonl", "per_item.parquet", "samples.json", "scores.json"]
    assert found["corrupt"]["many"] == tuple(f"image{number}: is damaged" for number in CORRUPT_AT)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["splits"]["many"]["images"] == NUM_EXAMPLES - len(TEXT_ONLY_AT) - len(CORRUPT_AT)
    assert len(found["scores"]["many"]) > 15
    assert found["while training"] == {
        f"{split}/{name}": value
        for split, values in found["scores"].items()
        for name, value in values.items()
        if name not in ("images", "captions")
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_finds_what_one_process_finds(tmp_path, alone, size):
    ranks = run_ranks(tmp_path, size, "tests.evaluation.test_sharding")
    expected, folder = alone
    for number, found in enumerate(ranks):
        for what in ("scores", "while training", "facts", "corrupt"):
            assert_same(found[what], expected[what], f"rank {number}: {what}")
        assert found["files"] == (
            ["items.json", "manifest.jsonl", "per_item.parquet", "samples.json", "scores.json"] if number == 0 else []
        )
    for file in ("scores.json", "samples.json", "items.json", "per_item.parquet"):
        assert (tmp_path / "rank0" / file).read_bytes() == (folder / file).read_bytes(), file

    # Each example is read on one rank, a whole batch at a time, and each batch is worked on there alone.
    for split, everything in expected["asked for"].items():
        asked_for = [found["asked for"][split] for found in ranks]
        assert sorted(index for of_rank in asked_for for index in of_rank) == everything
        for number, of_rank in enumerate(asked_for):
            assert {index // BATCH_SIZE % size for index in of_rank} <= {number}
    assert sorted(line for found in ranks for line in found["said"]) == sorted(expected["said"])
    assert sum(found["held"] for found in ranks) == expected["held"] == 5, "memory is held once"

    # What goes wrong on one rank is raised on all of them.
    *mistakes, bug, beyond, writing = (list(said) for said in zip(*(found["errors"] for found in ranks), strict=True))
    for said, one in zip([*mistakes, beyond], [*expected["errors"][:3], expected["errors"][4]], strict=True):
        assert said == [one] * size
    assert "has no image that can be decoded" in mistakes[0][0]
    assert bug[1] == expected["errors"][3] == "ValueError: a bug"
    assert set(bug) - {bug[1]} == {"OtherRankFailed: rank 1: ValueError: a bug"}
    assert writing[0].startswith("FileNotFoundError: ")
    assert all(said == f"OtherRankFailed: rank 0: {writing[0]}" for said in writing[1:])
