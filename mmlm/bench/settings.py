"""The settings of the benchmarks: docstrings are the text of their ``--help`` (see ``key_values``). No torch."""

from dataclasses import dataclass, field


@dataclass
class PartsSettings:
    """Measure every option of every slot in turn with the experiment's own choice, and print a Markdown table."""

    experiment: str = "caption_base"
    """The model that is held fixed, and the sizes of its data."""
    slots: list[str] = field(default_factory=lambda: ["encoder", "bridge", "text_encoder", "decoder"])
    """Slots to vary, one at a time."""
    options: list[str] | None = None
    """Only these options of the slots; null takes all that have a file in configs/."""
    overrides: list[str] = field(default_factory=list)
    """Settings of the experiment to change for all cells, such as [model.width=96,optim=adamw]; one with brackets of
    its own stands in double quotes."""
    batch_size: int | None = None
    """Images a step, with one caption each; null takes the experiment's."""
    vocab_size: int = 2000
    """Tokens of the vocabulary: no tokenizer is fitted here."""
    steps: int = 8
    """Timed steps of each cell."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: str | None = None
    """File to write the table to as well."""


@dataclass
class LearnsSettings:
    """Train every option of every slot for a few hundred steps, and print whether it learns. Exit status 1 if one does
    not. Cells that a file beside ``out`` has the result of are not trained again."""

    experiment: str = "caption_base"
    """The model that is held fixed; its data are replaced by data=emoji tokenizer=byte_pair."""
    slots: list[str] = field(default_factory=lambda: ["encoder", "bridge", "text_encoder", "decoder", "freeze"])
    """Slots to vary, one at a time."""
    options: list[str] | None = None
    """Only these options of the slots; null takes all that have a file in configs/."""
    overrides: list[str] = field(default_factory=list)
    """Settings of the experiment to change for all cells, such as [model.width=96,optim=adamw]; one with brackets of
    its own stands in double quotes."""
    steps: int = 300
    """Optimizer steps of each cell."""
    batch_size: int | None = None
    """Images a step; null takes the experiment's."""
    seed: int = 0
    """Seed of each cell's training."""
    split: str = "val_style"
    """Validation split that is held out."""
    examples: int | None = None
    """Examples of that split to judge on, drawn at random and the same for all cells; null takes all of it."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: str | None = None
    """File to write the table to as well. Results go to OUT.jsonl as they come; a line deleted there is run again."""


@dataclass
class LossesSettings:
    """Measure forward and backward of our losses and of open_clip's in turn, and print a Markdown table."""

    batch_sizes: list[int] = field(default_factory=lambda: [1024, 4096, 16384])
    """Images (and captions) of the contrastive losses."""
    width: int = 512
    """Numbers of an embedding."""
    captioning: bool = True
    """Measure captioning's loss too, against ways that hold all logits: open_clip's needs 12 GB."""
    rounds: int = 3
    """Measurements of each contrastive loss, in turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: str | None = None
    """File to write the table to as well."""


@dataclass
class SourcesSettings:
    """Measure how long sources of many rows take to open and what they cost a data worker, and print a Markdown table.
    Exit status 1 if a million rows (or fewer) take more than 10 s, or more than 200 MB of a worker."""

    rows: int = 1_000_000
    """Rows of each data set."""
    formats: list[str] = field(default_factory=lambda: ["jsonl", "csv", "parquet", "tar"])
    """Some of jsonl, csv, parquet (without images), tar."""
    epochs: int = 5
    """Epochs of the worker."""
    examples: int = 2000
    """Examples that the worker reads in each, beside all captions."""
    out: str | None = None
    """File to write the table to as well."""


@dataclass
class DataSettings:
    """Measure what reading by the index of tar shards costs, and crops of JPEG files against open_clip's transform, and
    print Markdown tables."""

    shards: int = 10_000
    """Shards that a source is made of."""
    members: int = 2000
    """Samples of the shard that is read."""
    photos: int = 40
    """JPEG files of 640x480 pixels, from which crops of 224 are made."""
    rounds: int = 5
    """Measurements of each, in turn."""
    out: str | None = None
    """File to write the table to as well."""


@dataclass
class GenerationBenchSettings:
    """Caption random images in turn with open_clip's CoCa.generate and with the same weights in mmlm, and print a
    Markdown table of times, ratios and whether the greedy tokens are the same."""

    peer: str = "???"
    """The Python of an environment with torch, open_clip_torch==3.3.0 and transformers==4.56.2, the last that
    open_clip's generation works with: it runs in a process of its own."""
    model: str = "coca_ViT-B-32:2"
    """coca_ViT-B-32; with :2, its sizes with 2 layers in each stack in place of 12; or an open_clip configuration as a
    JSON file. Weights are random."""
    batch_size: int = 16
    """Images captioned together."""
    tokens: list[int] = field(default_factory=lambda: [30, 76])
    """Lengths of captions in tokens, start included."""
    beams: list[int] = field(default_factory=lambda: [1, 6])
    """Beams; 1 is greedy. open_clip divides its beams into 3 groups, as it does by default."""
    rounds: int = 3
    """Pairs of measurements of each length and number of beams."""
    out: str | None = None
    """File to write the table to as well."""


@dataclass
class RetrievalSettings:
    """Measure the ranks of retrieval, which are counted, against a sort of the same scores; print a Markdown table."""

    sizes: list[int] = field(default_factory=lambda: [5000, 20000])
    """Images, and as many captions."""
    width: int = 256
    """Numbers of an embedding."""
    out: str | None = None
    """File to write the table to as well."""


@dataclass
class StatisticsSettings:
    """Go through made-up studies of which the truth is known, and print how often tests, intervals and forecasts of
    power are right, as Markdown tables. Exit status 1 if one is outside of its bounds by more than chance."""

    studies: int = 1000
    """Studies of each kind."""
    seeds: list[int] = field(default_factory=lambda: [3, 5, 8, 10])
    """Seeds of a cell."""
    runs: list[str] | None = None
    """Run folders of one recipe, one for each seed: then studies are drawn from their recorded scores too."""
    score: str = "test/image_to_text/R@5"
    """Of these runs: a split and one of its scores that is a mean over items."""
    out: str | None = None
    """File to write the tables to as well."""
