"""Student's t, which numpy does not have, and the normal distribution."""

import math
from functools import lru_cache
from statistics import NormalDist

NORMAL = NormalDist()
"""The standard normal distribution: ``NORMAL.cdf(x)`` and ``NORMAL.inv_cdf(share)``."""
AS_NORMAL = 1e7
"""With more degrees of freedom, t is normal to seven digits."""


def student_cdf(value: float, freedom: float) -> float:
    """The probability that t with ``freedom`` (> 0) degrees of freedom is at most ``value``."""
    if freedom > AS_NORMAL:
        return NORMAL.cdf(value)
    square = value * value
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + square), square / (freedom + square))
    return 1 - tail if value > 0 else tail


@lru_cache(maxsize=4096)
def student_quantile(share: float, freedom: float) -> float:
    """The value that t is below with probability ``share``, in (0, 1); Newton's steps, within a bracket."""
    if freedom > AS_NORMAL:
        return NORMAL.inv_cdf(share)
    if share < 0.5:
        return -student_quantile(1 - share, freedom)
    low, high = 0.0, max(1.0, NORMAL.inv_cdf(share))
    while student_cdf(high, freedom) < share:
        low, high = high, 2 * high
    logarithm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    value = (low + high) / 2
    while high - low > 1e-13 * high:
        missing = share - student_cdf(value, freedom)
        low, high = (value, high) if missing > 0 else (low, value)
        step = missing / math.exp(logarithm - (freedom + 1) / 2 * math.log1p(value * value / freedom))
        if abs(step) <= 1e-13 * value:
            return value
        value = value + step if low < value + step < high else (low + high) / 2
    return value


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's algorithm); ``rest`` is 1 - x."""
    if x <= 0 or rest <= 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _incomplete_beta(b, a, rest, x)
    tiny = 1e-300
    ratio_c, ratio_d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1), tiny)
    fraction = ratio_d
    for step in range(1, 500):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        ratio_d = 1 / _not_zero(1 + even * ratio_d, tiny)
        ratio_c = _not_zero(1 + even / ratio_c, tiny)
        fraction *= ratio_d * ratio_c
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        ratio_d = 1 / _not_zero(1 + odd * ratio_d, tiny)
        ratio_c = _not_zero(1 + odd / ratio_c, tiny)
        fraction *= ratio_d * ratio_c
        if abs(ratio_d * ratio_c - 1) < 1e-15:
            break
    front = a * math.log(x) + b * math.log(rest) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(front) * fraction / a


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
