"""A trained model as a folder in Hugging Face layout, which loads without Hydra and without a config file of ours.

    from mmlm.pretrained import from_pretrained

    model = from_pretrained("folder")          # or a name on the hub
    model.encode_image([picture])              # float32[1, E]
    model.encode_text(["a red circle"])        # float32[1, E]
    model.caption([picture])                   # ["a red circle"]

    config.json                the parts' nodes and sizes
    model.safetensors          the weights, by their names in ``MmlmModel``
    preprocessor_config.json   the image transform
    (the tokenizer's files)
    decoder/config.json        if a part is a pretrained model of transformers: its config, so that no hub is needed
    README.md                  the model card
    manifest.jsonl             the SHA-256 of each of these files

``transformers.AutoModel.from_pretrained`` gives the same object once this module is imported. ``MmlmModel`` is no
``transformers.PreTrainedModel``, whose loading builds on the meta device, makes non-persistent buffers (normalisation,
fixed positions) anew by rules of its own, starts missing tensors at random, and knows tied weights only by its own
lists. Here every part is built with its real buffers and every name has to match.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, PreTrainedModel

from mmlm.checkpoints.weights import copy_weights, read_weights, save_weights
from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import NO_VIEW_INPUTS, View, ViewInputs
from mmlm.data.images import image_pixels
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.evaluation.decoding import write_captions
from mmlm.experiment.build import build_model, build_transform, unfitted_tokenizer
from mmlm.experiment.saved_run import CARD, TrainedRun
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.pretrained.files import (
    PREPROCESSOR,
    WEIGHTS,
    MmlmConfig,
    as_config,
    check_preprocessor,
    check_targets,
    download,
    is_portable,
    located,
    portable,
    preprocessor,
    read_config,
    record_files,
)
from mmlm.record.folder import MANIFEST
from mmlm.record.manifest import check_files

_FROM_AUTO = {"trust_remote_code", "code_revision", "adapter_kwargs", "_from_auto", "_commit_hash"}
"""Arguments that ``AutoModel`` adds for every model. They are ignored: no code is ever loaded from a folder."""


class MmlmModel(nn.Module):
    """A model with its tokenizer and image transform: all that is needed to use it.

    Args:
        config: the parts and sizes.
        model: the network; None builds it from ``config`` with random weights.
        tokenizer, transform: text to ids; images to uint8[B, 3, S, S].
        card: text of the model card.
        plugins: packages, besides mmlm, that ``config`` may name parts of.

    Raises:
        UserError: a config whose parts are not allowed or do not fit together.
    """

    config_class = MmlmConfig

    def __init__(
        self,
        config: MmlmConfig,
        model: ImageTextModel | None = None,
        tokenizer: Tokenizer | None = None,
        transform: Transform | None = None,
        card: str | None = None,
        plugins: Collection[str] = (),
    ) -> None:
        super().__init__()
        if model is None:
            check_targets(config, plugins)
            model = build_model(as_config(config, plugins), config.vocab_size, load_weights=False)
        self.config, self.model, self.card = config, model, card
        self._tokenizer, self._transform = tokenizer, transform

    @classmethod
    def from_run(cls, run: TrainedRun, card: str | None = None) -> "MmlmModel":
        """The model of a run with the weights that the run exports, in eval mode."""
        config = MmlmConfig.of_run(run.config, run.tokenizer.vocab_size)
        for slot in MODEL_SLOTS:
            if _pretrained_part(run.model, slot) is not None:
                portable(config, slot)
        return cls(config, run.model, run.tokenizer, build_transform(run.config), card).eval()

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | Path,
        *,
        plugins: Collection[str] = (),
        config: MmlmConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **from_auto: object,
    ) -> "MmlmModel":
        """The model of a folder, or of a name on the hub, on the CPU and in eval mode.

        It is bit for bit the model that was saved: every tensor has to be there and none may be left over. ``plugins``
        are the packages, besides mmlm, whose parts you allow the folder to name. ``config`` replaces the folder's own.
        Raises UserError for a folder that mmlm did not save or that is damaged, and TypeError for an unknown argument.
        """
        unknown = from_auto.keys() - _FROM_AUTO
        if unknown:
            raise TypeError(f"from_pretrained() got an unexpected keyword argument '{min(unknown)}'")
        folder = Path(folder_or_name)
        if not folder.is_dir():
            folder = download(str(folder_or_name), revision, token, cache_dir, local_files_only, force_download)
        check_files(folder, spared=[CARD])
        config = config or read_config(folder)
        check_targets(config, plugins)
        here = as_config(located(config, folder), plugins)
        # Building the model draws random numbers. The caller's generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            model = build_model(here, config.vocab_size, load_weights=False)
        tokenizer = unfitted_tokenizer(here)
        tokenizer.restore(folder)
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(
                f"{folder}: its tokenizer has {tokenizer.vocab_size} ids and its model {config.vocab_size}; "
                "the files do not belong together"
            )
        transform = build_transform(here)
        check_preprocessor(folder, transform)
        card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
        pretrained = cls(config, model, tokenizer, transform, card)
        copy_weights(pretrained.state_dict(), read_weights(folder / WEIGHTS), str(folder))
        return pretrained.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes everything that ``from_pretrained`` reads into ``folder``, which is made if it is missing.

        Raises UserError for a folder that cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)  # of a model that was saved there before
            self.config.save_pretrained(folder)
            for slot in MODEL_SLOTS:
                inner = _pretrained_part(self.model, slot)
                if inner is not None and is_portable(self.config, slot):
                    inner.config.save_pretrained(folder / slot)
            save_weights(self.state_dict(), folder / WEIGHTS)
            self.tokenizer.save(folder)
            described = preprocessor(self.transform)
            (folder / PREPROCESSOR).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            if self.card is not None:
                (folder / CARD).write_text(self.card, encoding="utf-8")
            record_files(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from error

    def push_to_hub(
        self, name: str, *, private: bool | None = None, token: str | bool | None = None, revision: str | None = None
    ) -> str:
        """Saves the model on the hub as ``name`` (made if it is missing) and returns its address."""
        api = HfApi(token=token)
        made = api.create_repo(name, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(
                repo_id=made.repo_id, folder_path=folder, revision=revision, commit_message="Upload model"
            )
        return str(made)

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids. Raises UserError for a model that was made without one."""
        return cast(Tokenizer, _given(self._tokenizer, "tokenizer"))

    @property
    def transform(self) -> Transform:
        """Images to uint8[B, 3, S, S]. Raises UserError for a model that was made without one."""
        return cast(Transform, _given(self._transform, "transform"))

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return next(self.parameters()).device

    def forward(self, batch: Batch, views: Collection[View], drawn: ViewInputs = NO_VIEW_INPUTS) -> ModelOutput:
        """The forward pass of ``ImageTextModel``, for training the model further."""
        return self.model(batch, views, drawn)

    @torch.no_grad()
    def encode_image(self, images: Sequence[Image.Image | Tensor], batch_size: int = 64) -> Tensor:
        """Pillow images or uint8[3, H, W] tensors (RGB) of any sizes -> float32[B, E], unit length.

        Raises UserError for anything that is no image.
        """
        parts = [
            self.model.encode_image(self._see(chunk, first)).embedding
            for first, chunk in _chunks(images, batch_size, "images")
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.model.sizes.embedding_width, device=self.device)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], language: str | None = None, batch_size: int = 256) -> Tensor:
        """Texts -> float32[C, E], unit length. ``language`` None takes the model's own.

        Raises UserError for a language that the tokenizer lacks, and for anything that is no text.
        """
        parts = [
            self.model.encode_text(*self._read(chunk, first, language or self.config.language))
            for first, chunk in _chunks(texts, batch_size, "texts")
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.model.sizes.embedding_width, device=self.device)

    @torch.no_grad()
    def caption(
        self, images: Sequence[Image.Image | Tensor], language: str | None = None, batch_size: int = 64
    ) -> list[str]:
        """A greedy caption (the most likely token at each step) of each image. ``language`` None is the model's own.

        Raises UserError for a model without a decoder, a language that the tokenizer lacks, and anything that is no
        image.
        """
        if self.model.decoder is None:
            raise UserError("caption: this model has no decoder; it can encode_image and encode_text")
        start_id = self.tokenizer.start_id(language or self.config.language)
        captions: list[str] = []
        for first, chunk in _chunks(images, batch_size, "images"):
            features = self.model.encode_image(self._see(chunk, first))
            captions += write_captions(self.model, self.tokenizer, features, start_id, self.config.max_tokens)
        return captions

    def _see(self, images: Sequence[Image.Image | Tensor], first: int) -> Tensor:
        """Images, the first of them number ``first`` -> uint8[B, 3, S, S] on the model's device."""
        pixels = [_pixels(image, f"images.{first + index}") for index, image in enumerate(images)]
        return self.transform(pixels, None).to(self.device)

    def _read(self, texts: Sequence[str], first: int, language: str | None) -> tuple[Tensor, Tensor]:
        """Texts -> int64[C, T] tokens and int64[C] lengths on the model's device."""
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"texts.{first + index}: a {type(text).__name__} is no text; give a list of str")
        ids = [torch.tensor(self.tokenizer.encode(text, language, self.config.max_tokens)) for text in texts]
        tokens = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_id)
        return tokens.to(self.device), torch.tensor([len(row) for row in ids], device=self.device)


from_pretrained = MmlmModel.from_pretrained


AutoConfig.register(MmlmConfig.model_type, MmlmConfig)
AutoModel.register(MmlmConfig, MmlmModel)


def _pretrained_part(model: ImageTextModel, slot: str) -> PreTrainedModel | None:
    """The model of transformers inside the part of a slot; None if there is none."""
    part = getattr(model, slot)
    modules = () if part is None else part.modules()
    return next((module for module in modules if isinstance(module, PreTrainedModel)), None)


def _given(part: object, name: str) -> object:
    """``part``, unless the model was made without it: then UserError."""
    if part is None:
        raise UserError(f"{name}: this model was made without one; load it with from_pretrained")
    return part


def _chunks(items: Sequence[Any], size: int, name: str) -> list[tuple[int, Sequence[Any]]]:
    """``items`` in chunks of at most ``size``, each with the number of its first item. Raises UserError."""
    if isinstance(items, (str, bytes, Tensor, Image.Image)):
        raise UserError(f"{name}: a {type(items).__name__} is no list; write [...] around it")
    if size < 1:
        raise UserError(f"batch_size: {size} must be at least 1")
    return [(first, items[first : first + size]) for first in range(0, len(items), size)]


def _pixels(image: object, name: str) -> Tensor:
    """uint8[3, H, W] on the CPU. Raises UserError."""
    if isinstance(image, Image.Image):
        return image_pixels(image, name)
    if not isinstance(image, Tensor):
        raise UserError(f"{name}: a {type(image).__name__} is no image; give a Pillow image or a uint8[3, H, W] tensor")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        kind = f"{str(image.dtype).removeprefix('torch.')}{list(image.shape)}"
        raise UserError(f"{name}: a {kind} tensor is no image; give uint8[3, H, W], RGB from 0 to 255")
    return image.cpu()
