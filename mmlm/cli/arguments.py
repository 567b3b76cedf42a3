"""The arguments of every small command: docstrings are the text of its ``--help`` (see ``key_values``). No torch."""

from dataclasses import dataclass, field
from enum import Enum

from mmlm.core.precision import Precision
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.launch.slurm import Slurm


@dataclass
class EvaluateArguments:
    """Score a trained run on its splits, or on other images, and add the scores to its files and its report."""

    run: str = "???"
    """Run folder, or a folder with runs below it, of which the newest is taken."""
    data: str | None = None
    """Other images with captions: a folder with captions.jsonl, a folder of images for each class, a Parquet file, a
    tar shard, a table (.csv, .tsv) or a COCO folder, or a URL of shards; which of them is recognised.
    [NAME:PATH,NAME:PATH] gives several, named."""
    language: str | None = None
    """With data: the language of captions that name none, and the one to caption in and to score; null takes the run's
    own."""
    splits: list[str] | None = None
    """Split names of the run's config; validation and test stand for all of that group. Null is validation, or none
    where data is given."""
    evaluators: str | None = None
    """Instead of the run's own: the evaluators of this option in configs/evaluators, or of a file of yours,
    evaluators/NAME.yaml."""
    decoding: GenerationSettings = field(default_factory=GenerationSettings)
    """How the captions are written that are scored, in place of what the evaluators say: decoding.beams=4.
    Its language is that of the evaluator."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run and the evaluators may take parts from: naming one allows it to run code."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Precision = Precision.fp32
    """fp32, in which an exported model computes and in which a run takes its last scores; or auto, bf16, fp16."""


@dataclass
class ChosenRun:
    """The first argument of a command about a run."""

    run: str = "???"
    """Run folder, or a folder with runs below it, of which the newest is taken."""


@dataclass
class CaptionArguments(GenerationSettings, ChosenRun):
    """Caption images with a trained run: prints ``path<TAB>caption``, one line an image; with n above 1, n lines an
    image, ``path<TAB>caption<TAB>score``, the best first.

    Greedy by default, the most probable token at each step. beams=4 searches for the most probable caption instead;
    temperature, top_k, top_p or min_p draws tokens at random, the same for the same seed and pixels.
    """

    device: str = "auto"
    """auto, cpu or cuda."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run may take parts from: naming one allows it to run code."""


@dataclass
class SearchArguments:
    """Find the images of a folder that are nearest to a text or an image. Prints ``rank  similarity  path`` a line.

    The images are embedded once. The index is kept, and brought up to date when files change.
    """

    run: str = "???"
    """Run folder, a folder with runs below it, of which the newest is taken, or the folder of an exported model."""
    images: str = "???"
    """Folder of images, at any depth."""
    query: str = "???"
    """A text, or the path of an image."""
    top: int = 10
    """How many images to show."""
    out: str | None = None
    """Folder for the index and the page, search.html; null is a folder below the user's cache, which is printed."""
    language: str | None = None
    """Language of the text; null takes the run's own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run may take parts from: naming one allows it to run code."""


@dataclass
class ClassifyArguments:
    """Give each image of a folder to one of your labels. Prints ``probability label ... path``, one line an image.

    Probabilities are a softmax over scale * similarity. They say which of the labels fits best, not whether any does.
    """

    run: str = "???"
    """Run folder, a folder with runs below it, of which the newest is taken, or the folder of an exported model."""
    images: str = "???"
    """Folder of images, at any depth."""
    labels: str = "???"
    """File of the labels: a text file with one a line, or a JSON object {"label": "its words", "label": ["its words",
    "other words"]}."""
    templates: list[str] | None = None
    """Prompts with {} once, where the words go, such as ["a photo of a {}","a drawing of a {}"]: a label is the mean of
    its prompts. Null takes the caption of a run on class folders, and else the words themselves."""
    scale: float | None = None
    """What similarities are multiplied by; null takes the scale that the run has learned."""
    top: int = 1
    """How many labels to print for each image."""
    csv: str | None = None
    """File to write: the label of each image, and the probabilities of all labels."""
    out: str | None = None
    """Folder for the index of the images; null is a folder below the user's cache."""
    language: str | None = None
    """Language of the labels; null takes the run's own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run may take parts from: naming one allows it to run code."""


@dataclass
class LintArguments:
    """Read every image and caption of a data set once: what cannot be read and why, what is odd or there twice, how
    many tokens and how much padding to expect. Writes a page, and lists of the ids concerned.

    Of several sets, what the others share with the first one is told too: what training would have seen already.
    """

    data: str = "???"
    """A folder or file of images with captions, recognised as by mmlm.evaluate. [train:PATH,test:PATH] gives several,
    named; the first is the one that is trained on."""
    out: str = "lint"
    """Folder to write lint.html and the lists into; drop.txt has the ids of the first set whose pixels another
    set has too, alike.txt those that look like an image of another."""
    threads: int | None = None
    """Threads that read; null is one for each core."""
    max_tokens: int = 48
    """The longest caption that a model would read, in tokens, as data.max_tokens."""
    vocab_size: int = 2000
    """Ids of the byte-pair tokenizer that is fitted to count tokens, as tokenizer.vocab_size."""
    alike: bool = True
    """Look for nearly equal images too: scaled, compressed or brightened copies, and some that only look so."""


@dataclass
class CompareArguments:
    """Draw the curves of several runs into one figure, and print Markdown tables: of their last scores, and of the
    differences from the first run with interval, p, and the smallest difference that the split could have shown."""

    runs: list[str] = field(default_factory=list)
    """Run folders, or folders with runs below them, of which the newest is taken; NAME:FOLDER gives a run a name of its
    own."""
    out: str = "???"
    """Folder that gets curves.png, scores.md and differences.md."""
    unlike: bool = False
    """Compare scores that were taken under unlike protocols (other examples, precision or rules) all the same."""


@dataclass
class ReportArguments:
    """Write the report.html of a run folder again."""

    run: str = "???"
    """Run folder, or a folder with runs below it, of which the newest is taken."""
    against: str | None = None
    """Another run, whose scores stand beside this one's: a run folder, or a folder with runs below it, of which the
    newest is taken. A line says in which precision, commit, device, threads or data the two differ."""
    unlike: bool = False
    """Show it also where its scores were taken under another protocol: other examples, precision or rules."""


@dataclass
class ExportArguments:
    """Export the model of a run: load it with mmlm.pretrained.from_pretrained, anywhere and without Hydra."""

    run: str = "???"
    """Run folder, or a folder with runs below it, of which the newest is taken."""
    to: str = "???"
    """Folder to write; it must be new, or empty."""
    license: str | None = None
    """Licence of the weights for the model card, an identifier of the hub such as mit; null leaves it unstated."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run may take parts from: naming one allows it to run code."""


@dataclass
class ConvertArguments:
    """Convert the weights of open_clip or transformers to a run folder, or a run of CoCa's architecture to open_clip's.

    from_open_clip=FILE model=coca_ViT-B-32 to=DIR makes a run folder, for run=DIR (caption, evaluate) and
    init_from.run=DIR (train). A CLIP (model=ViT-B-32) becomes encoder and text layers of a model whose captioning
    decoder is still to be trained. SigLIP, SigLIP 2, PE-Core and MetaCLIP (quickgelu) become two towers;
    from_transformers=FOLDER to=DIR reads SigLIP, SigLIP 2, CLIP and MetaCLIP as transformers saves them. run=DIR
    to_open_clip=FILE takes a CoCa back. All are exact.
    """

    from_open_clip: str | None = None
    """open_clip weights to read: .safetensors, or a checkpoint of PyTorch (read without unpickling)."""
    model: str | None = None
    """The model of the weights: a name of open_clip (coca_ViT-B-32, ViT-B-16) or its configuration as a JSON file."""
    to: str | None = None
    """Run folder to write."""
    run: str | None = None
    """Run folder to read, or a folder with runs below it, of which the newest is taken."""
    plugins: list[str] = field(default_factory=list)
    """Packages, besides mmlm, that the run may take parts from: naming one allows it to run code."""
    to_open_clip: str | None = None
    """File to write open_clip weights to: .safetensors, or any other name for a PyTorch state dict."""
    from_transformers: str | None = None
    """Model of transformers to read: a folder with config.json and safetensors, or a name on the hub."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer that the weights go with, where it is not the one that their model names."""
    temperature: float | None = None
    """Temperature of weights that come without one, such as 0.01. Training starts from it."""
    bias: float | None = None
    """Bias of SigLIP's loss for weights that come without one, such as -10."""


@dataclass
class VerifyArguments:
    """Compare the files of a run, or of an exported model, with what was written. Exit status 2 if one is damaged."""

    run: str = "???"
    """Run folder, a folder with runs below it, of which the newest is taken, or the folder of an exported model."""
    accept: list[str] = field(default_factory=list)
    """Files that you have changed on purpose, such as [config.yaml]: from now on they count as they are."""


class PackFormat(Enum):
    """What packed data are written as."""

    tar = "tar"
    parquet = "parquet"


@dataclass
class PackArguments:
    """Write images with captions, of any format, as tar shards or Parquet files, with checksums in manifest.json.

    Encoded images are kept as they are; what a source has only decoded becomes PNG. The same command goes on where it
    was stopped.
    """

    data: str = "???"
    """An option of configs/data, such as emoji, or the path of images with captions: a folder with captions.jsonl, a
    folder of images for each class, a Parquet file, a tar shard, a table (.csv, .tsv), a COCO folder, or a URL of
    shards (s3://bucket/train)."""
    out: str = "???"
    """Folder to write: a new or an empty one, or that of the same command."""
    format: PackFormat = PackFormat.tar
    """tar: shards of 000000017.jpg and 000000017.json, each with its index. parquet: columns image, caption, language,
    concept and id."""
    shard_size: int = 1000
    """Examples of a file."""
    split: str | None = None
    """With an option: the split to pack; null is train."""
    overrides: list[str] = field(default_factory=list)
    """With an option: its settings, such as [data.path=FOLDER]."""
    threads: int = 4
    """Files that are written at the same time."""


@dataclass
class WorkerArguments:
    """Train a run folder that a launcher has prepared: start it, or go on from its last checkpoint."""

    plugins: list[str] = field(default_factory=list)
    """The packages, besides mmlm, that the launched config may name parts of."""


class StudyLauncher(Enum):
    """What starts the runs of a study."""

    none = "none"
    slurm = "slurm"


class OnOtherCode(Enum):
    """What becomes of a study whose earlier runs were made by other code."""

    refused = "refused"
    changed = "changed"


@dataclass
class StudyArguments:
    """Run a study: every cell with every seed, each a run of its own. The same command goes on with what is not done.

    NAME is a file of configs/study, or a path of yours that ends in .yaml. After it, one word may say what to do
    instead: plan tells what the study costs and can find, status how far it is, report writes its tables and its page.
    `verify PAGE ...` in place of NAME makes the tables of studies in pages again, and tells which are not right.
    """

    runs: str = "runs"
    """Folder that holds all run folders; the study's own is studies/NAME in it."""
    processes: int = 1
    """Runs that are trained side by side on this machine."""
    launcher: StudyLauncher = StudyLauncher.none
    """none trains on this machine; slurm submits all runs as one job array, and returns at once."""
    at_once: int | None = None
    """With launcher=slurm: tasks of the array that run at the same time; null is no limit."""
    code: OnOtherCode = OnOtherCode.refused
    """changed goes on where earlier runs were made by other code than this, and the table marks them."""
    measure: bool = True
    """With plan: cells of which no run is done are trained for a few steps, to tell hours and memory."""
    unlike: bool = False
    """With report: show scores of unlike data or protocols all the same."""
    into: str | None = None
    """With report: a page, such as experiments/NAME/README.md, to write the tables into, and their record beside it."""
    slurm: Slurm = field(default_factory=Slurm)
    """With launcher=slurm: what each task asks for."""
