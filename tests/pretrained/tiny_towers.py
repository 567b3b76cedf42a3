"""timm's SigLIP and PE-Core at tiny sizes under names of their own, and a tokenizer like SigLIP's, for parity tests."""

from pathlib import Path

from timm.models import Eva, VisionTransformer, generate_default_cfgs, register_model
from timm.models.eva import vit_pe_core_base_patch16_224
from timm.models.vision_transformer import vit_base_patch16_siglip_224
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["tiny_pe_core_of_tests", "tiny_siglip_of_tests"]

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 32, 32), "fixed_input_size": True}
default_cfgs = generate_default_cfgs({"tiny_siglip_of_tests.": _HALF, "tiny_pe_core_of_tests.": _HALF})
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32}


@register_model
def tiny_siglip_of_tests(pretrained: bool = False, **kwargs: object) -> VisionTransformer:
    return vit_base_patch16_siglip_224(pretrained, **{**SMALL, **kwargs})


@register_model
def tiny_pe_core_of_tests(pretrained: bool = False, **kwargs: object) -> Eva:
    small = {**SMALL, "attn_pool_num_heads": 2, "ref_feat_shape": (2, 2)}
    return vit_pe_core_base_patch16_224(pretrained, **{**small, **kwargs})


def siglip_tokenizer(folder: Path) -> Path:
    """A unigram tokenizer as SigLIP's: pieces with ``▁`` for a blank, ``</s>`` at the end, which is also padding."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [("▁" + word, -3.0) for word in ("a", "photo", "of", "cat", "dog", "red", "snow")]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789éß"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>", model_max_length=12
    )
    fast.save_pretrained(folder)
    return folder
