"""What holds for every bridge: the protocol, and that its option file makes a model with either kind of decoder."""

from collections.abc import Callable

import pytest
import torch

from mmlm.check.bridges import RELATIONS, SIZES, BridgeUnderTest
from mmlm.check.modules import GENERAL
from mmlm.core.views import CAPTION, EMBED
from mmlm.experiment.build import build_model
from mmlm.experiment.compatibility import check_compatible
from mmlm.experiment.config import CONFIG_DIR
from mmlm.experiment.config_checks import check_config
from mmlm.model.bridges.attentional_pooler import AttentionalPooler
from mmlm.model.bridges.perceiver_resampler import PerceiverResampler
from mmlm.model.bridges.projection import LinearProjection, MlpProjection
from mmlm.model.bridges.q_former import QFormer
from mmlm.model.bridges.token_learner import TokenLearner
from mmlm.model.protocols import Bridge
from mmlm.optim.optimizers import decays

N, PATCH_WIDTH, WIDTH = 16, 10, 8
GRID = (4, 4)
BRIDGES: dict[str, Callable[[bool], Bridge]] = {
    "linear": lambda pool: LinearProjection(PATCH_WIDTH, GRID, WIDTH, pool=pool),
    "mlp": lambda pool: MlpProjection(PATCH_WIDTH, GRID, WIDTH, pool=pool),
    "linear_shuffled": lambda pool: LinearProjection(PATCH_WIDTH, GRID, WIDTH, pixel_shuffle=2, pool=pool),
    "mlp_shuffled": lambda pool: MlpProjection(PATCH_WIDTH, GRID, WIDTH, pixel_shuffle=4, pool=pool),
    "pooler": lambda pool: AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, num_queries=3, pool=pool),
    "perceiver": lambda pool: PerceiverResampler(PATCH_WIDTH, WIDTH, num_latents=3, pool=pool),
    "q_former": lambda pool: QFormer(PATCH_WIDTH, WIDTH, depth=3, num_queries=3, pool=pool),
    "token_learner": lambda pool: TokenLearner(PATCH_WIDTH, WIDTH, num_tokens=3, hidden_width=WIDTH, pool=pool),
}
POOLING: dict[str, Callable[[bool], Bridge]] = {
    "patches": lambda _: AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, num_queries=None),
    "parallel": lambda _: AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, num_queries=3, contrastive="parallel"),
    "cascaded": lambda _: AttentionalPooler(PATCH_WIDTH, GRID, WIDTH, num_queries=3, contrastive="cascaded"),
}
"""Those that cannot be built with ``pool`` false."""
CASES = [(name, pool) for name in BRIDGES for pool in (True, False)] + [(name, True) for name in POOLING]
SHUFFLED = ("linear_shuffled", "mlp_shuffled")
QUERYING = ("pooler", "perceiver", "q_former", "parallel", "cascaded", "token_learner")
OPTIONS = sorted(file.stem for file in (CONFIG_DIR / "bridge").glob("*.yaml") if file.stem != "none")


def build(name: str, pool: bool = True) -> Bridge:
    torch.manual_seed(0)
    return (BRIDGES | POOLING)[name](pool)


def under_test(name: str, pool: bool) -> BridgeUnderTest:
    """The bridge as the kit tries it."""
    return BridgeUnderTest((BRIDGES | POOLING)[name], PATCH_WIDTH, N, pools=(pool,))


@pytest.mark.parametrize("check", [*SIZES, *RELATIONS], ids=lambda check: check.run.__name__)
@pytest.mark.parametrize(("name", "pool"), CASES)
def test_it_keeps_the_rules_of_a_bridge(name, pool, check):
    check.run(under_test(name, pool))


@pytest.mark.parametrize("check", GENERAL, ids=lambda check: check.run.__name__)
@pytest.mark.parametrize(("name", "pool"), CASES)
def test_it_keeps_the_rules_of_every_part(name, pool, check):
    for module in under_test(name, pool).modules():
        check.run(module)


@pytest.mark.parametrize(("name", "pool"), [case for case in CASES if not case[1]])
def test_without_pooling_there_is_nothing_more_to_train(name, pool, make_patches):
    """Each parameter that is there moves the memory; the one query more is gone."""
    bridge, pooling = build(name, pool).double(), build(name, True)
    bridge(make_patches(N, PATCH_WIDTH)).memory.sin().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in bridge.parameters())
    sizes = [sum(p.numel() for p in b.parameters()) for b in (bridge, pooling)]
    assert sizes[1] - sizes[0] == (WIDTH if name in QUERYING else 0)


@pytest.mark.parametrize("name", QUERYING)
def test_queries_do_not_care_for_the_order_of_patches(name, make_patches):
    bridge, x = build(name).double(), make_patches(N, PATCH_WIDTH)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    one, other = bridge(x), bridge(x[:, order])
    torch.testing.assert_close(one.memory, other.memory, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bridge.patch_attention(x)[..., order], bridge.patch_attention(x[:, order]))


@pytest.mark.parametrize("name", [name for name in (BRIDGES | POOLING) if name not in SHUFFLED])
def test_patches_may_be_dropped(name, make_patches):
    bridge, x = build(name), make_patches(N - 5, PATCH_WIDTH).float()
    num_memory = bridge.num_memory if name in QUERYING else N - 5
    assert bridge(x).memory.shape == (3, num_memory, WIDTH)
    assert bridge.patch_attention(x).shape == (3, num_memory, N - 5)


@pytest.mark.parametrize("name", ["perceiver", "q_former", "cascaded"])
def test_learned_queries_are_offsets_without_weight_decay(name):
    plain = [n for n, p in build(name).named_parameters() if p.ndim == 2 and not decays(n, p)]
    assert plain
    assert all("queries" in n for n in plain)


# Option files


@pytest.mark.parametrize("decoder", ["transformer", "prefix"])
@pytest.mark.parametrize("option", OPTIONS)
def test_caption_base_takes_every_bridge_with_either_fusion(option, decoder, compose):
    config = check_config(compose("experiment=caption_base", f"bridge={option}", f"decoder={decoder}"))
    check_compatible(config)
    with torch.device("meta"):
        model = build_model(config, vocab_size=100, load_weights=False)
    assert model.bridge.pooled_width == 144


@pytest.mark.parametrize("decoder", ["transformer", "prefix"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_parameter_of_the_model_has_a_gradient(option, decoder, tiny_config, make_batch):
    model = build_model(tiny_config(f"bridge={option}", f"decoder={decoder}"), vocab_size=13)
    output = model(make_batch(), {EMBED, CAPTION})
    outputs = (output.image_embedding, output.text_embedding, output.hidden[CAPTION] @ output.head_weight.T)
    sum(x.sin().sum() for x in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    maps = model.attention_maps(make_batch())
    assert maps.shape == (5, 7, 2, 2)
    assert maps.sum((-1, -2)).max() <= 1 + 1e-4
