"""Ranks do not change the maths: 2 and 3 real gloo processes against one process on the joined batch, in float64.

``be_a_rank`` is what each rank does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.core.batch import TEXT_ONLY, Batch, Caption
from mmlm.core.distributed import agreed, gather, rank, sum_over_ranks, world_size
from mmlm.core.errors import UserError
from mmlm.core.loss import Loss
from mmlm.core.model_output import ModelOutput
from mmlm.core.stop import StopAsked
from mmlm.core.views import CAPTION, StepKey
from mmlm.objectives.captioning import Captioning
from mmlm.objectives.contrastive import InfoNCE
from mmlm.objectives.weighted_sum import WeightedSum
from tests.ranks import run_ranks

TOKENS, VOCABULARY, WIDTH = 6, 9, 5


@dataclass(frozen=True)
class Share:
    """What one rank holds. Equal concepts and texts stand on different ranks on purpose."""

    image_concept: tuple[int, ...]
    image_index: tuple[int, ...]
    caption_concept: tuple[int, ...]
    caption_key: tuple[int, ...]
    lengths: tuple[int, ...]


SHARES = {
    2: (
        Share((1, 2, 3), (0, 0, 1, 2), (1, 1, 2, 3), (10, 11, 12, 13), (3, 6, 2, 4)),
        Share((4, 1), (TEXT_ONLY, 1, 0), (9, 1, 4), (10, 14, 12), (5, 3, 6)),
    ),
    3: (
        Share((1, 2), (1, 0, 1, TEXT_ONLY), (2, 1, 2, 8), (10, 11, 12, 11), (2, 3, 6, 3)),
        # No caption at all: its images take no part, and its rank still has to play along.
        Share((1, 5), (), (), (), ()),
        Share((6, 7, 2, 7), (0, 1, 2, 3, 3), (6, 7, 2, 7, 7), (20, 11, 21, 22, 23), (4, 4, 5, 2, 6)),
    ),
}


def batch_of(shares: tuple[Share, ...]) -> Batch:
    """The batch of these ranks joined in order (token values come from each caption's own key and place)."""
    images = sum(len(share.image_concept) for share in shares)
    first, index = 0, []
    for share in shares:
        index += [i if i == TEXT_ONLY else i + first for i in share.image_index]
        first += len(share.image_concept)
    lengths = torch.tensor([n for share in shares for n in share.lengths], dtype=torch.int64)
    keys = torch.tensor([k for share in shares for k in share.caption_key], dtype=torch.int64)
    return Batch(
        images=torch.zeros(images, 3, 1, 1, dtype=torch.uint8),
        tokens=(keys[:, None] * 7 + torch.arange(TOKENS) * lengths[:, None]) % VOCABULARY,
        lengths=lengths,
        image_index=torch.tensor(index, dtype=torch.int64),
        image_concept=torch.tensor([c for share in shares for c in share.image_concept]),
        caption_concept=torch.tensor([c for share in shares for c in share.caption_concept], dtype=torch.int64),
        caption_key=keys,
        ids=tuple(str(i) for i in range(images)),
        captions=tuple(Caption(str(k)) for k in keys.tolist()),
    )


class LinearModel(nn.Module):
    """Embeddings and hidden states as linear maps of fixed features, and the two objectives with unequal weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = {"image": (WIDTH, 4), "text": (WIDTH, 4), "hidden": (WIDTH, 4), "head": (VOCABULARY, 4)}
        draw = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
        self.maps = nn.ParameterDict(draw)
        parts = {"contrastive": InfoNCE(temperature=0.3, label_smoothing=0.1), "captioning": Captioning(0.05)}
        self.objective = WeightedSum(parts, {"contrastive": 1.0, "captioning": 1.0}).double()

    def forward(self, batch: Batch, images: Tensor, texts: Tensor, tokens: Tensor) -> Loss:
        """Features float64[B, WIDTH], [C, WIDTH] and [C, TOKENS - 1, WIDTH]."""
        output = ModelOutput(
            F.normalize(images @ self.maps["image"], dim=-1),
            F.normalize(texts @ self.maps["text"], dim=-1),
            {CAPTION: tokens[batch.target_mask] @ self.maps["hidden"]},
            self.maps["head"],
        )
        return self.objective(output, batch, StepKey(), self.objective.count((batch,), StepKey()))


def features_of(shares: tuple[Share, ...], only: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The joined batch's features, or rank ``only``'s rows of them."""
    generator = torch.Generator().manual_seed(1)
    images = [len(share.image_concept) for share in shares]
    captions = [len(share.image_index) for share in shares]
    shapes = ((sum(images), WIDTH), (sum(captions), WIDTH), (sum(captions), TOKENS - 1, WIDTH))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    if only is None:
        return tuple(drawn)
    counts = (images, captions, captions)
    return tuple(part.split(count)[only] for part, count in zip(drawn, counts, strict=True))


def results(shares: tuple[Share, ...], only: int | None) -> dict[str, Tensor]:
    """Loss, terms, figures and gradients of one rank's share, or of the joined batch."""
    model = LinearModel()
    loss = model(batch_of(shares if only is None else shares[only : only + 1]), *features_of(shares, only))
    loss.total.backward()
    found = {f"sum/gradient/{name}": p.grad for name, p in model.named_parameters()}
    found |= {f"sum/value/{name}": term.value.detach() for name, term in loss.terms.items()}
    found |= {"sum/total": loss.total.detach()}
    found |= {f"sum/figure/{name}": figure.value for name, figure in loss.figures.items()}
    return found | {f"same/count/{name}": term.global_count for name, term in loss.terms.items()}


def rows_of_rank(number: int) -> Tensor:
    """float64[2 * rank + rank 0's none ..., 3]: 0, 2 or 4 rows."""
    return torch.randn(2 * number, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def weights_of_rank(number: int, rows: int) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(50 + number), dtype=torch.float64)


ENDS = {
    "all end well": {},
    "one is asked to stop": {1: StopAsked("SIGUSR1")},
    "all are asked to stop": {number: StopAsked("SIGTERM") for number in range(3)},
    "a mistake": {1: UserError("x: 1 must be 2")},
    "a bug": {0: ValueError("a bug")},
    "a stop and a mistake": {0: StopAsked("SIGUSR1"), 1: UserError("x: 1 must be 2")},
    "a stop and a bug": {0: ValueError("a bug"), 1: StopAsked("SIGUSR1")},
}
"""What the ranks raise that raise something."""


def end_of_agreed(raised: Mapping[int, BaseException], number: int) -> str:
    """What rank ``number`` raises in the end."""
    try:
        with agreed(dist.group.WORLD):
            if number in raised:
                raise raised[number]
    except (Exception, StopAsked) as error:
        return f"{type(error).__name__}: {error}"
    return "well"


def be_a_rank(folder: Path, number: int, size: int) -> None:
    """Joins the group, computes, and leaves what it found in ``folder``."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=number,
        world_size=size,
        timeout=timedelta(seconds=120),
    )
    assert (rank(), world_size()) == (number, size)
    local = rows_of_rank(number).requires_grad_()
    everyone = gather(local)
    (everyone * weights_of_rank(number, len(everyone))).sum().backward()
    value = torch.tensor([1.0 + number, 2.0], requires_grad=True)
    total = sum_over_ranks(value)
    assert not total.requires_grad
    assert value.tolist() == [1.0 + number, 2.0]
    found = {
        "gathered": everyone.detach(),
        "gathered gradient": local.grad,
        "integers": gather(torch.arange(number + 1) + 10 * number),
        "total": total,
        "ends": [end_of_agreed(own, number) for own in ENDS.values()],
    }
    torch.save(found | results(SHARES[size], number), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_gives_one_process_s_loss_and_gradients(tmp_path, size):
    found = run_ranks(tmp_path, size, "tests.core.test_distributed", timeout=240)
    one = results(SHARES[size], None)
    assert len({len(share.image_index) for share in SHARES[size]}) == size
    assert one["sum/gradient/objective.objectives.contrastive.logit_scale"].abs() > 1e-3
    for name, expected in one.items():
        if name.startswith("sum/"):
            torch.testing.assert_close(sum(each[name] for each in found), expected, rtol=1e-10, atol=1e-10)
        else:
            for each in found:
                torch.testing.assert_close(each[name], expected, rtol=1e-10, atol=1e-10)

    rows = torch.cat([rows_of_rank(number) for number in range(size)])
    weights = sum(weights_of_rank(number, len(rows)) for number in range(size))
    integers = torch.cat([torch.arange(number + 1) + 10 * number for number in range(size)])
    for number, each in enumerate(found):
        bug, other = "ValueError: a bug", "OtherRankFailed: rank 0: ValueError: a bug"
        assert dict(zip(ENDS, each["ends"], strict=True)) == {
            "all end well": "well",
            "one is asked to stop": "StopAsked: SIGUSR1",
            "all are asked to stop": "StopAsked: SIGTERM",
            "a mistake": "UserError: x: 1 must be 2",
            "a bug": other if number else bug,
            "a stop and a mistake": "UserError: x: 1 must be 2",
            "a stop and a bug": other if number else bug,
        }
        assert torch.equal(each["gathered"], rows)
        assert torch.equal(each["integers"], integers)
        assert each["total"].tolist() == [sum(range(1, size + 1)), 2.0 * size]
    gradient = torch.cat([each["gathered gradient"] for each in found])
    torch.testing.assert_close(gradient, weights, rtol=1e-12, atol=1e-12)


def test_one_process_needs_no_group():
    assert (rank(), world_size()) == (0, 1)
    local = torch.randn(3, 2, requires_grad=True)
    assert gather(local) is local
    total = sum_over_ranks(local)
    assert torch.equal(total, local)
    assert not total.requires_grad
    total += 1
    assert not torch.equal(total, local)
