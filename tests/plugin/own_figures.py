"""An evaluator and an objective of somebody's own package that declare what their numbers are, all but one each."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mmlm.core.batch import TEXT_ONLY, Batch
from mmlm.core.figure import Figure, FigureGroup, loss_term
from mmlm.core.loss import Loss, Term
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import EMBED, StepKey
from mmlm.evaluation.split import EncodedSplit
from mmlm.objectives.objective import Objective


class ZeroShot:
    """The share of images whose nearest concept, by one text of each, is their own."""

    needs_decoder = False
    figures: Mapping[str, Figure] = {
        "accuracy": Figure(
            "Zero-shot",
            "the nearest name is that of its concept",
            FigureGroup("Naming", "Does it know what things are called?"),
            share=True,
            higher_is_better=True,
            chance="chance",
            shown=("table", "chart", "compare", "console"),
            headline="{value} of {images} are named right",
        ),
        "distance": Figure("Distance", "from the right name", higher_is_better=False, shown=("compare",)),
    }

    def __init__(self, prompt: str = "{}", language: str | None = None) -> None:
        self.prompt, self.language = prompt, language

    def __call__(self, split: EncodedSplit) -> Iterator[tuple[str, float]]:
        """Yields ``accuracy``, ``distance``, ``chance`` and, without a declaration, ``odd_count``."""
        names = [self.prompt.format(concept.texts[0].text) for concept in split.concepts]
        similarity = split.image_embedding @ split.embed_texts(names, self.language).T
        keys = torch.tensor([concept.key for concept in split.concepts], device=split.device)
        own = split.image_concept[:, None] == keys[None, :]
        yield "accuracy", own[torch.arange(len(own)), similarity.argmax(dim=1)].double().mean().item()
        yield "distance", 1 - similarity[own].double().mean().item()
        yield "chance", 1 / len(names)
        yield "odd_count", float(len(names))


class Pull(Objective):
    """One minus the cosine between each caption and its image."""

    views = frozenset({EMBED})
    figures: Mapping[str, Figure] = {
        "pull": loss_term("1 - cosine of a caption and its image"),
        "near": Figure("near", "share of captions at an acute angle", share=True, shown=("chart", "compare")),
    }

    def counts(self, batch: Batch, step_key: StepKey) -> Mapping[str, Tensor]:
        """The number of captions with an image."""
        return {"pairs": (batch.image_index != TEXT_ONLY).sum()}

    def forward(self, output: ModelOutput, batch: Batch, step_key: StepKey, counts: Mapping[str, Tensor]) -> Loss:
        """One term, the figure ``near`` and, without a declaration, ``odd_thing``."""
        assert output.image_embedding is not None
        assert output.text_embedding is not None
        paired = batch.image_index != TEXT_ONLY
        cosine = (output.image_embedding[batch.image_index[paired]] * output.text_embedding[paired]).sum(dim=-1)
        count = counts["pairs"].to(cosine.dtype)
        near, odd = Term((cosine > 0).sum().to(cosine.dtype), count), Term(cosine.detach().sum(), count)
        return Loss({"pull": Term((1 - cosine).sum(), count)}, {"near": near, "odd_thing": odd})
