"""A few examples of the shipped data as files in each of the formats that people have theirs in."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mmlm.core.batch import Caption, ExampleTexts
from mmlm.data.emoji import Emoji
from mmlm.data.packing import pack_file
from mmlm.data.sources import texts_of

EXAMPLES = 10
"""Of each split."""
SPLITS = {"train": "train", "validation": "val_concepts"}
"""The split of the shipped data that the split of a format has its examples from."""


def examples(split: str) -> list[tuple[str, bytes, ExampleTexts]]:
    """A file name for each image, its bytes, and its texts."""
    source = Emoji(SPLITS[split])
    texts = list(texts_of(source))
    indices = range(0, len(source), len(source) // EXAMPLES)[:EXAMPLES]
    return [(f"{place}.png", source.encoded(index), texts[index]) for place, index in enumerate(indices)]


def write_images(folder: Path, split: str) -> list[tuple[str, str]]:
    """The images of a split in a folder; returns their names and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data, _ in examples(split):
        (folder / name).write_bytes(data)
    return [(name, texts.captions[0].text) for name, _, texts in examples(split)]


def paired_files(folder: Path) -> None:
    for split in SPLITS:
        for name, caption in write_images(folder / split, split):
            (folder / split / name).with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")


def class_folders(folder: Path) -> None:
    for split in SPLITS:
        for name, data, texts in examples(split):
            place = folder / split / texts.captions[0].text.replace(" ", "_").replace("/", "_")
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)


def captions_jsonl(folder: Path) -> None:
    for split in SPLITS:
        lines = [json.dumps({"image": name, "caption": text}) for name, text in write_images(folder / split, split)]
        (folder / split / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")


def csv_tables(folder: Path, ending: str = "csv", delimiter: str = ",") -> None:
    for split in SPLITS:
        found = write_images(folder / "images" / split, split)
        with (folder / f"{split}.{ending}").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["image", "caption"])
            writer.writerows((f"images/{split}/{name}", caption) for name, caption in found)


def tsv_tables(folder: Path) -> None:
    csv_tables(folder, "tsv", "\t")


def coco(folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split, place in (("train", "train2017"), ("validation", "val2017")):
        found = write_images(folder / place, split)
        content = {
            "images": [{"id": number, "file_name": name} for number, (name, _) in enumerate(found)],
            "annotations": [{"id": n, "image_id": n, "caption": caption} for n, (_, caption) in enumerate(found)],
        }
        (folder / "annotations" / f"captions_{place}.json").write_text(json.dumps(content))


def karpathy(folder: Path) -> None:
    items = []
    for split, place in (("train", "train2014"), ("validation", "val2014")):
        for name, caption in write_images(folder / place, split):
            item = {"filename": name, "filepath": place, "sentences": [{"raw": caption}]}
            of_coco = ("restval" if name == "0.png" else "train") if split == "train" else "val"
            items.append(item | {"split": of_coco})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": items, "dataset": "coco"}))


def tars(folder: Path, ending: str = "tar") -> None:
    """As ``mmlm.pack`` writes them: two files of the training split, whose captions name no language."""
    for split, name in SPLITS.items():
        (folder / split).mkdir(parents=True)
        source = Emoji(name)
        texts = [replace(one, captions=(Caption(one.captions[0].text),)) for one in texts_of(source)]
        for number in range(2 if split == "train" else 1):
            indices = range(number * EXAMPLES, (number + 1) * EXAMPLES)
            pack_file(source, indices, texts[indices.start : indices.stop], folder / split / f"{number:05d}.{ending}")


def parquet(folder: Path) -> None:
    tars(folder, "parquet")


FORMATS: Mapping[str, Callable[[Path], None]] = {
    "pairs": paired_files,
    "classes": class_folders,
    "lines": captions_jsonl,
    "table": csv_tables,
    "tabs": tsv_tables,
    "rows": parquet,
    "coco": coco,
    "karpathy": karpathy,
    "shards": tars,
}
"""What makes a folder of each format, by the name that the folder has in the commands of configs/README.md."""
