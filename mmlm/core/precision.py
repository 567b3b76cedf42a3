"""The names of the precisions of forward and backward; ``computing`` says what they do. Imports no torch."""

import enum


class Precision(enum.Enum):
    """The type in which matrix products are computed; parameters and optimizer state stay float32."""

    auto = "bfloat16 where the hardware is known to be faster in it, else float32"
    fp32 = "float32"
    bf16 = "bfloat16 by autocast"
    fp16 = "float16 by autocast"
