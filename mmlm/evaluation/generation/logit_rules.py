"""Rules about the next token: what may not be said, and what is said less gladly.

They act on log-probabilities, which are the same for every choice of logits: a model's logits are free up to a sum.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = -torch.inf
"""The log-probability of what a rule forbids."""


@dataclass(frozen=True)
class LogitRules:
    """All rules of a task. The defaults change nothing."""

    end_id: int
    min_tokens: int = 2
    """Shortest caption, start and end included."""
    repetition_penalty: float = 1.0
    no_repeat_ngram: int | None = None
    forbidden: tuple[tuple[int, ...], ...] = ()
    """Runs of tokens, one token or more each."""

    def __call__(self, log_probabilities: Tensor, read: Tensor) -> Tensor:
        """float[R, V] of the next token, after ``read`` int64[R, t], start included -> float[R, V] under the rules.

        They do not sum to 1 any more. Where the rules leave nothing to say, the caption ends.
        """
        changed = log_probabilities
        if self.repetition_penalty != 1:
            changed = with_repetition_penalty(changed, read, self.repetition_penalty)
        if self.no_repeat_ngram is not None:
            changed = without_repeated_ngrams(changed, read, self.no_repeat_ngram)
        for run in self.forbidden:
            changed = without_run(changed, read, run)
        if read.shape[1] + 1 < self.min_tokens:
            changed = without_run(changed, read, (self.end_id,))
        if changed is log_probabilities:
            return changed
        stuck = (changed == NEVER).all(dim=1)
        end = torch.where(stuck, log_probabilities[:, self.end_id], changed[:, self.end_id])
        return changed.index_copy(1, torch.tensor([self.end_id], device=end.device), end[:, None])


def with_repetition_penalty(log_probabilities: Tensor, read: Tensor, penalty: float) -> Tensor:
    """Log-probabilities float[R, V], those of tokens in ``read`` int64[R, t] times ``penalty`` (arXiv:1909.05858).

    The paper divides positive logits and multiplies negative ones, by which the result depends on their free sum.
    """
    return log_probabilities.scatter(1, read, log_probabilities.gather(1, read) * penalty)


def without_repeated_ngrams(log_probabilities: Tensor, read: Tensor, size: int) -> Tensor:
    """Log-probabilities float[R, V], ``NEVER`` for tokens that would end a run of ``size`` tokens that is in ``read``.

    ``read`` is int64[R, t].
    """
    if read.shape[1] < size:
        return log_probabilities
    runs = read.unfold(1, size, 1)
    newest = read[:, read.shape[1] - size + 1 :]
    begun = (runs[..., :-1] == newest[:, None]).all(dim=-1)
    repeats = torch.zeros_like(log_probabilities, dtype=torch.int64).scatter_add(1, runs[..., -1], begun.long())
    return log_probabilities.masked_fill(repeats > 0, NEVER)


def without_run(log_probabilities: Tensor, read: Tensor, run: tuple[int, ...]) -> Tensor:
    """Log-probabilities float[R, V], ``NEVER`` for the last token of ``run`` where ``read`` int64[R, t] ends in its
    others."""
    *others, last = run
    if len(others) > read.shape[1]:
        return log_probabilities
    begun = (read[:, read.shape[1] - len(others) :] == torch.tensor(others, device=read.device)).all(dim=1)
    changed = log_probabilities.clone()
    changed[:, last].masked_fill_(begun, NEVER)
    return changed
