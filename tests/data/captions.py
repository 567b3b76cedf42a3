"""A few captions and odd texts, and a tokenizer of transformers that is made of them."""

import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmlm.core.batch import Caption

CAPTIONS = [
    Caption("grinning face", "en"),
    Caption("grinning face with big eyes", "en"),
    Caption("Flagge: Österreich", "de"),
]

TEXTS = [
    "",
    "grinning face",
    "Flagge: Österreich",
    "笑脸 والد हिन्दी 한국어 日本語",
    "👨‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "a\u200db \ufeffc \x00 \x7f",
    "it's 3.50 -- ok?!",
    "<pad> <s> </s> <en> <|endoftext|> [SEP]",
    "Ġ Ċ �",
]


def hugging_face_folder(path, **special: str) -> str:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    model.train_from_iterator([caption.text for caption in CAPTIONS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(path)
    return str(path)
