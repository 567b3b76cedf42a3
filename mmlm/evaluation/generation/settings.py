"""How captions are decoded. Imports no torch: the command line reads these settings before anything else."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from mmlm.core.errors import ArgumentError
from mmlm.core.ranges import check_counts, check_positive


@dataclass
class GenerationSettings:
    """Greedy by default: the most probable token at each step. ``beams`` above 1 searches for the most probable caption
    instead; ``temperature``, ``top_k``, ``top_p`` or ``min_p`` draws each token at random.

    Raises:
        ArgumentError: a number outside of its range, or settings that do not go together.
    """

    language: str | None = None
    """Language to caption in; null takes the model's own."""
    prompt: str | None = None
    """Words that every caption begins with, such as prompt="a photo of"."""
    beams: int = 1
    """Captions that are followed at the same time; above 1 is a beam search."""
    length_penalty: float | None = None
    """With beams or samples: captions are ordered by log-probability / tokens ** length_penalty, higher for longer
    captions; 0 leaves lengths aside. Null is 1, the mean over the tokens."""
    temperature: float | None = None
    """Draw tokens from softmax(logits / temperature): 1 is the model's distribution. Null draws none, or is 1 where
    top_k, top_p or min_p is set."""
    top_k: int | None = None
    """Draw from the k most probable tokens only."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens whose probabilities sum to this share at least."""
    min_p: float | None = None
    """Draw from the tokens that have this share of the most probable one's probability at least."""
    n: int = 1
    """Captions of each image, the best first; at most beams, or as many samples as you like."""
    rerank: int | None = None
    """Make this many captions, and keep the n that are most similar to the image by the model's embeddings."""
    seed: int = 0
    """Seed of the samples. A sample depends on seed, image and settings alone."""
    repetition_penalty: float = 1.0
    """Log-probabilities of tokens that the caption has already are multiplied by it: above 1 they are avoided."""
    no_repeat_ngram: int | None = None
    """No run of this many tokens occurs twice in a caption."""
    min_tokens: int = 2
    """Shortest caption in tokens, start and end included."""
    max_tokens: int | None = None
    """Longest caption in tokens, start and end included; null is the longest that the model reads."""
    forbidden: list[str] = field(default_factory=list)
    """Texts that captions do not contain, as tokens: [word,two words]."""

    def __post_init__(self) -> None:
        counts = {"beams": self.beams, "n": self.n, "rerank": self.rerank, "top_k": self.top_k}
        check_counts({**counts, "no_repeat_ngram": self.no_repeat_ngram})
        check_counts({"min_tokens": self.min_tokens, "max_tokens": self.max_tokens}, 2)
        check_positive("repetition_penalty", self.repetition_penalty)
        if self.temperature == 0:
            raise ArgumentError("temperature: 0 must be above 0; leave it out for the most probable token")
        check_positive("temperature", self.temperature)
        for name, share in {"top_p": self.top_p, "min_p": self.min_p}.items():
            if share is not None and not 0 < share <= 1:
                raise ArgumentError(f"{name}: {share} must be above 0 and at most 1")
        if self.length_penalty is not None and not math.isfinite(self.length_penalty):
            raise ArgumentError(f"length_penalty: {self.length_penalty} must be finite, such as 0 or 1")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ArgumentError(f"min_tokens: {self.min_tokens} must be at most max_tokens={self.max_tokens}")
        if any(not text.strip() for text in self.forbidden):
            raise ArgumentError("forbidden: an empty text is in every caption; leave it out")
        self._check_together()

    def _check_together(self) -> None:
        drawn = [f"{name}={value}" for name, value in self._of_samples.items() if value is not None]
        if self.beams > 1 and drawn:
            raise ArgumentError(f"beams: {self.beams} and {drawn[0]} exclude each other: a beam draws nothing; set one")
        if self.rerank is not None and self.rerank < self.n:
            raise ArgumentError(
                f"rerank: {self.rerank} must be at least n={self.n}, the captions that are kept of them"
            )
        made, name = self.candidates, "n" if self.rerank is None else "rerank"
        if self.beams > 1 and made > self.beams:
            raise ArgumentError(f"{name}: {made} must be at most beams={self.beams}; set beams={made}")
        if self.is_greedy and made > 1:
            raise ArgumentError(f"{name}: {made} captions need beams={made} or a temperature; greedy writes one")
        if self.is_greedy and self.length_penalty is not None:
            raise ArgumentError(f"length_penalty: {self.length_penalty} does nothing for a greedy caption; set beams")

    @property
    def _of_samples(self) -> Mapping[str, float | None]:
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn."""
        return any(value is not None for value in self._of_samples.values())

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most probable one."""
        return self.beams == 1 and not self.is_sampled

    @property
    def in_words(self) -> str:
        """What decides a caption beside model, image and language: ``greedy``, ``beams=4``, ``greedy, min_tokens=5``.

        The settings that are not the default, each once; the seed only where tokens are drawn. Equal words are equal
        captions.
        """
        plain = GenerationSettings()
        shown = [one.name for one in fields(GenerationSettings) if one.name not in ("language", "seed")]
        said = ["greedy"] if self.is_greedy else []
        for name in shown:
            value = getattr(self, name)
            if value != getattr(plain, name):
                said.append(f"{name}={json.dumps(value, ensure_ascii=False)}")
        return ", ".join([*said, f"seed={self.seed}"] if self.is_sampled else said)

    @property
    def candidates(self) -> int:
        """Captions that are made of each image."""
        return self.n if self.rerank is None else self.rerank

    @property
    def length_power(self) -> float:
        """The power of the number of tokens that log-probabilities are divided by."""
        return 1.0 if self.length_penalty is None else self.length_penalty
