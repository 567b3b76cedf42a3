"""mmlm: multimodal image-text joint training."""
