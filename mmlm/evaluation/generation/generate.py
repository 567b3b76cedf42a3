"""The one way to captions in tokens, for every decoder and every setting."""

from typing import TypeVar

from mmlm.evaluation.generation.beam import beam_search
from mmlm.evaluation.generation.sampling import Sampling
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.generation.step_by_step import write_step_by_step
from mmlm.evaluation.generation.task import CacheT, CaptionDecoder, Hypothesis, Task

FeaturesT = TypeVar("FeaturesT")


def generate(
    model: CaptionDecoder[FeaturesT, CacheT], features: FeaturesT, task: Task, settings: GenerationSettings
) -> list[list[Hypothesis]]:
    """The captions of each of the B images of ``features``, the highest score first: ``settings.candidates`` of them.

    A beam may find fewer where there are no more. The result for an image does not depend on the others of the batch.
    The caller puts the model in evaluation mode.
    """
    if not len(task.keys):
        return []
    count, power = settings.candidates, settings.length_power
    if settings.beams > 1:
        return beam_search(model, features, task, settings.beams, count, power)
    sampling = None
    if settings.is_sampled:
        temperature = 1.0 if settings.temperature is None else settings.temperature
        sampling = Sampling(settings.seed, temperature, settings.top_k, settings.top_p, settings.min_p)
    written = write_step_by_step(model, features, task, count, sampling, power)
    return [sorted(of_image, key=lambda one: -one.score) for of_image in written]
