"""The captions and the concept of a sample of a tar shard, out of the texts that lie beside its image."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmlm.core.batch import Caption
from mmlm.data.caption_choice import by_kind
from mmlm.data.class_folder import PLACE


def json_object(text: str) -> Mapping[str, Any]:
    """The object that a JSON text holds; an empty one if it holds none, as in an index that somebody has edited."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class TextRules:
    """How texts become captions. The settings of ``TarShards`` explain the fields of the same names."""

    json_captions: tuple[str, ...]
    json_language: str
    json_kind: str
    json_concept: str
    caption: str
    names: Mapping[str, str] | None
    language: str | None

    def read(self, texts: Mapping[str, str | None]) -> tuple[tuple[Caption, ...], str | None]:
        """The captions and the concept of ``texts`` by ending; equal captions are one, and the last concept counts."""
        captions: dict[Caption, None] = {}
        concept: str | None = None
        for ending, text in texts.items():
            if text is None:
                continue
            if ending == "json":
                found, named = self._of_json(json_object(text))
                captions |= dict.fromkeys(found)
                concept = named or concept
            elif ending == "cls":
                captions[self._of_class(text)] = None
                concept = concept or text
            else:
                captions[Caption(text, self.language)] = None
        return tuple(captions), concept

    def _of_class(self, text: str) -> Caption:
        # A class that ``names`` lacks is said as it is written: one odd sample should not end a run.
        words = text.replace("_", " ") if self.names is None else self.names.get(text, text)
        return Caption(self.caption.replace(PLACE, words), self.language)

    def _of_json(self, content: Mapping[str, Any]) -> tuple[Sequence[Caption], str | None]:
        texts: list[Any] = []
        kinds: list[str | None] = []
        for key in self.json_captions:
            if content.get(key) is not None:
                value = content[key]
                texts = value if isinstance(value, list) else [value]
                kinds = list(_each(content.get(self.json_kind), len(texts)))
                if isinstance(value, dict):  # texts by their kinds
                    found, kinds = by_kind(value)
                    texts = found or []
                break
        all_of = zip(texts, _each(content.get(self.json_language), len(texts)), kinds, strict=True)
        captions = [
            Caption(text, self.language if language is None else language, kind)
            for text, language, kind in all_of
            if isinstance(text, str)
        ]
        concept = content.get(self.json_concept)
        return captions, concept if isinstance(concept, str) else None


def _each(value: object, count: int) -> Iterator[str | None]:
    """What is said of each caption: of a text that of all, of a list as long as the captions that of each."""
    each = value if isinstance(value, list) and len(value) == count else [value] * count
    return (one if isinstance(one, str) else None for one in each)
