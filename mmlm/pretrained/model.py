"""A trained model as a folder in Hugging Face layout, which loads without Hydra and without a config file of ours.

    from mmlm.pretrained import from_pretrained

    model = from_pretrained("folder")          # or a name on the hub, or a run folder
    model.encode_image(["1.png", "2.png"])     # float32[2, E]
    model.encode_text("a red circle")          # float32[1, E]
    model.caption("1.png").text                # "a red circle"

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
import warnings
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModel, PreTrainedModel

from mmlm.checkpoints.weights import copy_weights, read_weights, save_weights
from mmlm.core.batch import Batch
from mmlm.core.errors import UserError
from mmlm.core.model_output import ModelOutput
from mmlm.core.views import NO_VIEW_INPUTS, View, ViewInputs
from mmlm.data.tokenizer import Tokenizer
from mmlm.data.transforms import Transform
from mmlm.experiment.build import build_model, build_transform, unfitted_tokenizer
from mmlm.experiment.device import choose_device
from mmlm.experiment.saved_run import CARD, TrainedRun, is_exported, load_run
from mmlm.model.model import ImageTextModel
from mmlm.model.protocols import MODEL_SLOTS
from mmlm.optim.lora import merge_adapters
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
from mmlm.pretrained.use import UsableModel
from mmlm.record.folder import MANIFEST, newest_run
from mmlm.record.manifest import check_files

_FROM_AUTO = {"trust_remote_code", "code_revision", "adapter_kwargs", "_from_auto", "_commit_hash"}
"""Arguments that ``AutoModel`` adds for every model. They are ignored: no code is ever loaded from a folder."""


class MmlmModel(UsableModel):
    """A model with its tokenizer and image transform: all that is needed to use it.

    ``EmbeddingModel`` has ``encode_image``, ``encode_text`` and ``similarity``; ``UsableModel`` has ``caption``,
    ``attention``, ``classify``, ``index`` and ``search``.

    Args:
        config: the parts and sizes.
        model: the network; None builds it from ``config`` with random weights.
        tokenizer, transform: text to ids; images to uint8[B, 3, S, S].
        card: text of the model card.
        plugins: packages, besides mmlm, that ``config`` may name parts of.
        dtype: what matrix products are computed in (see ``EmbeddingModel``).

    Raises:
        UserError: a config whose parts are not allowed or do not fit together, and another dtype.
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
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if model is None:
            check_targets(config, plugins)
            model = build_model(as_config(config, plugins), config.vocab_size, load_weights=False)
        super().__init__(config, model, tokenizer, transform, dtype)
        self.card = card

    @classmethod
    def from_run(cls, run: TrainedRun, card: str | None = None, dtype: torch.dtype = torch.float32) -> "MmlmModel":
        """The model of a run with the weights that the run exports, in eval mode."""
        config = MmlmConfig.of_run(run.config, run.tokenizer.vocab_size)
        if run.scale is not None:
            config.similarity_scale, config.similarity_scale_source = run.scale.value, run.scale.source
        for slot in MODEL_SLOTS:
            if _pretrained_part(run.model, slot) is not None:
                portable(config, slot)
        return cls(config, run.model, run.tokenizer, build_transform(run.config), card, dtype=dtype).eval()

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        plugins: Collection[str] = (),
        config: MmlmConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **from_auto: object,
    ) -> "MmlmModel":
        """The model of a folder, or of a name on the hub, in eval mode.

        It is bit for bit the model that was saved: every tensor has to be there and none may be left over. A run folder
        serves too; of several runs below a folder, the one that was trained last is taken, with a warning. Adapters are
        merged into the weights, as in an exported folder.

        Args:
            folder_or_name: the folder of an exported model or of a run, or a name on the hub.
            device: ``auto``, ``cpu``, ``cuda``, or a device of torch.
            dtype: what matrix products are computed in (see ``EmbeddingModel``).
            plugins: packages, besides mmlm, whose parts you allow the folder to name.
            config: in place of the folder's own.
            revision, token, cache_dir, local_files_only, force_download: for a name on the hub.

        Raises UserError for a folder that mmlm did not save or that is damaged, and TypeError for an unknown argument.
        """
        unknown = from_auto.keys() - _FROM_AUTO
        if unknown:
            raise TypeError(f"from_pretrained() got an unexpected keyword argument '{min(unknown)}'")
        place = choose_device(device) if isinstance(device, str) else device
        folder = Path(folder_or_name)
        run_folder = _run_in(folder) if config is None else None
        if run_folder is not None:
            run = load_run(str(run_folder), place, plugins)
            merge_adapters(run.model)
            return cls.from_run(run, dtype=dtype)
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
        pretrained = cls(config, model, tokenizer, transform, card, dtype=dtype)
        copy_weights(pretrained.state_dict(), read_weights(folder / WEIGHTS), str(folder))
        return pretrained.to(place).eval()

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

    def forward(self, batch: Batch, views: Collection[View], drawn: ViewInputs = NO_VIEW_INPUTS) -> ModelOutput:
        """The forward pass of ``ImageTextModel``, for training the model further."""
        return self.model(batch, views, drawn)


from_pretrained = MmlmModel.from_pretrained


AutoConfig.register(MmlmConfig.model_type, MmlmConfig)
AutoModel.register(MmlmConfig, MmlmModel)


def _run_in(folder: Path) -> Path | None:
    """The run folder at ``folder`` or the newest below it; None if there is none, or a model was exported there.

    Warns if there are several.
    """
    if not folder.is_dir() or is_exported(folder):
        return None
    try:
        found, count = newest_run(str(folder))
    except UserError:
        return None
    if count > 1:
        told = f"{folder} holds {count} runs; taking the one that was trained last, {found}"
        warnings.warn(told, stacklevel=3)
    return found


def _pretrained_part(model: ImageTextModel, slot: str) -> PreTrainedModel | None:
    """The model of transformers inside the part of a slot; None if there is none."""
    part = getattr(model, slot)
    modules = () if part is None else part.modules()
    return next((module for module in modules if isinstance(module, PreTrainedModel)), None)
