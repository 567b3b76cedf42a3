"""Parts broken on purpose, one rule each: the kit finds all, in one line that names part, rule and what to do."""

import dataclasses
import re
from pathlib import Path

import pytest

from mmlm.check.ranks import Ranks
from mmlm.check.slots import check_slot
from mmlm.check.tiny import tiny_config
from mmlm.core.errors import UserError
from mmlm.experiment.config import Config

BROKEN = {
    "bridge": {
        "WrongMemoryWidth": (r"Dm = memory_width", r"memory is \[3, 16, 32\].*\[3, 16, 33\] here; set .*memory_width"),
        "PoolsUnasked": (r"if the bridge was built with pool", r"pooled vector with pool=false; return Bridge"),
        "UnusedParameter": (r"gradients reach every parameter", r"gate\.weight has no gradient; use it"),
        "RowsSumToTwo": (r"rows sum to 1", r"the sum of a row: differs by up to 1; divide"),
        "NoPatchAttention": (r"patch_attention is float32", r"has no attribute 'patch_attention'"),
        "NumpyStart": (r"one seed start alike", r"projection\.weight starts differently .*; draw with torch"),
        "UnregisteredBuffer": (r"its state in a part of another seed", r"memory of .*register_buffer"),
        "DropoutInEval": (r"in eval mode the same input", r"memory the second time.*nn\.Dropout"),
        "CentredOverBatch": (r"does not depend on the other images", r"memory of an image alone.*over the batch"),
        "RootAtZero": (r"none is nan", r"the gradient of \S+ is not finite; guard"),
        "HalfPrecision": (r"memory is float", r"torch.float32 of weights that are torch.float64; compute in"),
    },
    "encoder": {
        "ForgottenClassToken": (r"tokens are float", r"tokens is \[3, 17, 32\].*\[3, 16, 32\] here; set num_prefix_t"),
        "SeesOtherPatches": (r"without seeing another", r"other pixels elsewhere: differs .*; blank"),
        "NormalisesTheBatch": (r"do not depend on the other images", r"tokens of an image alone.*over the batch"),
    },
    "text_encoder": {
        "MeanOfPadding": (r"padding", r"vectors with other padding: differs .*; mask what is behind `lengths`"),
    },
    "decoder": {
        "LooksAhead": (r"depends on no later token", r"states before token 1, .*; mask attention"),
        "WrongSecondToken": (r"cache gives the logits", r"logits of token 2 to 2, decoded 1/1/.*; let decode go on"),
        "NarrowHead": (r"head_weight is float", r"head_weight is \[17, 31\].*\[17, 32\] here; return"),
        "TextReadsLastImage": (r"text-only captions read no image", r"text-only caption 4 beside .*; mask the memory"),
        "BlindDecoder": (r"depend on its image", r"caption 0 is the same with another image; use the memory"),
    },
    "objective": {
        "MeanOfMicroBatch": (r"micro-batches of 2 and of 1", r"mine of micro-batches of 2: \S+ against .*; return"),
        "CountsAfterwards": (r"counts are numbers of the batch alone", r"'tokens' is 0 before .*; count in counts"),
        "EmptyRankSkips": (r"2 and 3 ranks, one of them empty", r"rank 0 runs ALLGATHER, .*; call the same coll"),
        "ByRowNumber": (r"another order", r"term mine of another order: .*; use no number of a row"),
        "DrawsFromTorch": (r"keyed by seed, step and example", r"term mine is another one .*; draw by StepKey"),
        "PerCent": (r"terms and figures are a sum", r"'right' is declared as a share and is 80; divide"),
        "CountsPadding": (r"counts are", r"the count 'tokens' is 91 for the batch and \d+ for its micro-batches"),
    },
    "data": {
        "ChangingItems": (r"the same number gives the same example", r"example 9 is another one .*; let an example"),
        "DoubledIds": (r"different ids", r"examples 0 and 1 are different and have the id 'square0'; make the id"),
        "FloatImages": (r"an image uint8\[3, H, W\]", r"is torch.float32\[3, 8, 8\]; return uint8"),
        "CaptionsOnce": (r"captions\(\) lists", r"where example 1 has others; yield every caption"),
        "OtherBytes": (
            r"encoded\(\), where there is one",
            r"encoded\(1\) is another image than \[1\] has; give the bytes",
        ),
        "ForgetsAShard": (r"shard_sizes\(\), where", r"shard_sizes\(\) adds up to 9, and len is 10; count the"),
    },
    "tokenizer": {
        "LosesEnd": (r"start, tokens and end", r"ends with \d+; end with end_id, \d+, also where the text is cut"),
        "LosesText": (r"decode gives the text back", r"comes back as .*; let decode give"),
    },
    "transform": {"OwnDice": (r"evaluation is without randomness", r"without augmentation .*; take all randomness")},
    "evaluators": {
        "MeanOfBatches": (r"the size of the batches", r"'length' is \S+ in batches of 5 .*; collect sums"),
        "YieldsNan": (r"finite numbers", r"'share' is nan; yield a float"),
        "InPerCent": (r"shares of at most 1", r"'right' is declared as a share and is 80.0; divide"),
        "ReadsPixels": (r"2 and 3 ranks yield", r"'brightness' is .* on rank \d of 2 .*over_batches"),
        "RequiresTooLittle": (r"requires no more than", r"fails on a split with an image without .*; leave out what"),
        "DrawsAnew": (r"a second time it yields the same", r"'some' is .*; draw with a generator of a fixed seed"),
    },
    "optim": {
        "ForgetsBiases": (r"in one group", r"\S+ is in no group; put every parameter"),
        "StepsNotSaved": (r"as if it had not stopped", r"after a stop \S+ is another one; keep all"),
    },
    "schedule": {"StartsAtZero": (r"the first step trains", r"the factor of step 0 of 1 is 0; begin above 0")},
}
"""By slot and class: what the line says of the rule, and of what was found with what to do."""
CASES = [(slot, name) for slot, parts in BROKEN.items() for name in parts]
ARGUMENTS = {
    "bridge": {"width": 32},
    "text_encoder": {"width": 32},
    "tokenizer": {"vocab_size": 300, "languages": ["en"]},
}
"""What the parts of a slot take."""
PLUGIN = Path(__file__).parents[1] / "plugin"


def with_part(slot: str, name: str) -> Config:
    """The tiny experiment with the part in its slot."""
    config = dataclasses.replace(tiny_config([]), plugins=["broken_parts"])
    node = {"_target_": f"broken_parts.{name}", **ARGUMENTS.get(slot, {})}
    if slot == "objective":
        node = {**config.objective, "objectives": {"mine": node}, "weights": {"mine": 1.0}}
    if slot == "evaluators":
        return dataclasses.replace(config, evaluators={"mine": node})
    if slot == "data":
        data = dataclasses.replace(config.data, train=node, validation={}, test={})
        return dataclasses.replace(config, data=data)
    return dataclasses.replace(config, **{slot: node})


def test_there_are_many():
    assert len(CASES) > 30


@pytest.mark.slow  # some start ranks
@pytest.mark.parametrize(("slot", "name"), CASES)
def test_a_broken_part_is_found(slot: str, name: str, ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    with pytest.raises(UserError) as caught:
        list(check_slot(slot, with_part(slot, name), ranks))
    said = str(caught.value)
    part, _, rest = said.partition(": broken rule: ")
    assert re.fullmatch(rf"{slot}\S* {name}", part), said
    rule, found = BROKEN[slot][name]
    assert re.search(rule, rest), said
    assert re.search(found, rest), said
    assert "\n" not in said
    assert "; " in rest, "what to do"
