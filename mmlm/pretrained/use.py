"""What a trained model can do besides embedding and searching: caption, show where it looks, classify."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import overload

from torch import Tensor

from mmlm.core.batch import Caption
from mmlm.core.errors import UserError
from mmlm.evaluation.attention import attention_of_tokens, words_of_tokens
from mmlm.evaluation.generation.captions import Written, check_settings, pixel_keys, write_captions
from mmlm.evaluation.generation.settings import GenerationSettings
from mmlm.evaluation.zero_shot import PLACE, check_templates, class_probabilities, class_prompts, class_vectors
from mmlm.experiment.similarity_scale import chosen_scale
from mmlm.pretrained.inputs import AnyImage, Given, check_text
from mmlm.pretrained.labels import Labels, label_words
from mmlm.pretrained.results import Attention, Classification, Results, WrittenCaption
from mmlm.pretrained.searching import SearchingModel


class UsableModel(SearchingModel):
    """A model with every call."""

    # Captions

    @overload
    def caption(  # type: ignore[overload-overlap]  # a path is a str, which Python counts among the sequences
        self,
        images: AnyImage,
        language: str | None = None,
        batch_size: int = 64,
        *,
        settings: GenerationSettings | None = None,
        alternatives: int = 0,
        progress: bool = False,
    ) -> WrittenCaption: ...

    @overload
    def caption(
        self,
        images: Sequence[AnyImage],
        language: str | None = None,
        batch_size: int = 64,
        *,
        settings: GenerationSettings | None = None,
        alternatives: int = 0,
        progress: bool = False,
    ) -> Results[WrittenCaption]: ...

    def caption(
        self,
        images: AnyImage | Sequence[AnyImage],
        language: str | None = None,
        batch_size: int = 64,
        *,
        settings: GenerationSettings | None = None,
        alternatives: int = 0,
        progress: bool = False,
    ) -> WrittenCaption | Results[WrittenCaption]:
        """A caption of each image, with its log-probability: greedy, unless ``settings`` say how to decode.

        ``language`` is that of ``settings``; None is the model's own. Of the ``n`` captions that ``settings`` ask for,
        the first is the result and the others are its ``alternatives``, the best first. Without ``settings``,
        ``alternatives`` asks for up to that many other texts, the most probable ones that a beam of one more finds;
        they may be more probable than the greedy caption, which they do not change. A sample depends on the seed, the
        pixels of the image and the settings. Raises UserError for a model without a decoder, a language that the
        tokenizer lacks, settings that the model has no room for, and anything that is no image.
        """
        if self.model.decoder is None:
            raise UserError("caption: this model has no decoder; it can encode_image and encode_text")
        if alternatives < 0:
            raise UserError(f"alternatives: {alternatives} must be at least 0")
        if alternatives and settings is not None:
            raise UserError(f"alternatives: {alternatives} is for greedy captions; set n in settings instead")
        language = language or self.config.language
        main, beam = settings or GenerationSettings(), None
        if alternatives:
            beam = GenerationSettings(beams=alternatives + 1, n=alternatives + 1, length_penalty=0.0)
        check_settings(self.tokenizer, main, self.config.max_tokens, language)
        given: Given[AnyImage] = Given.of("images", images)

        def work(first: int, some: Sequence[AnyImage]) -> list[WrittenCaption]:
            seen = self._see(given, first, some)
            with self._computing():
                features, keys = self.model.encode_image(seen), pixel_keys(seen)

                def written(by: GenerationSettings) -> list[list[Written]]:
                    most = self.config.max_tokens
                    return write_captions(self.model, self.tokenizer, features, by, keys, most, language)

                found = written(main)
                if beam is not None:
                    found = [
                        _distinct([*one, *more])[: alternatives + 1]
                        for one, more in zip(found, written(beam), strict=True)
                    ]
            return [_caption(image, of_image) for image, of_image in zip(some, found, strict=True)]

        captions = given.in_batches(batch_size, work, "captioning", progress)
        return captions[0] if given.single else Results(captions)

    def attention(
        self,
        images: AnyImage | Sequence[AnyImage],
        texts: str | Sequence[str] | None = None,
        language: str | None = None,
        *,
        progress: bool = False,
    ) -> Attention | list[Attention]:
        """Where the decoder looks in each image while it says the image's text; None: the caption that it writes.

        It is the attention of the decoder's last layer that reads the image, the mean over heads, carried on from the
        bridge's tokens to the patches. A text that is longer than the model reads loses its tail. A model without a
        decoder has none: what its encoder pools from says nothing of a text. Raises UserError for such a model, for a
        decoder that records no attention, and for a number of texts that is not that of the images.
        """
        decoder = self.model.decoder
        if decoder is None or not decoder.records_attention:
            lacks = "no decoder" if decoder is None else f"a decoder, {type(decoder).__name__}, that records none"
            raise UserError(f"attention: this model has {lacks}; use a model whose decoder reads the image")
        given: Given[AnyImage] = Given.of("images", images)
        if texts is None:
            texts = [caption.text for caption in self.caption(given.items, language, progress=progress)]
            said: Given[str] = Given("texts", texts, given.single)
        else:
            said = Given.of("texts", texts)
        if said.single != given.single or len(said.items) != len(given.items):
            raise UserError(f"texts: {len(said.items)} for {len(given.items)} images; give one text for each image")

        def work(first: int, some: Sequence[AnyImage]) -> list[Attention]:
            text = check_text(said.items[first], said.named(first))
            return [self._attention(self._see(given, first, some), Caption(text, language or self.config.language))]

        maps = given.in_batches(1, work, "looking", progress)
        return maps[0] if given.single else maps

    # Labels

    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        images: AnyImage,
        labels: Labels,
        templates: str | Sequence[str] = PLACE,
        language: str | None = None,
        batch_size: int = 64,
        *,
        scale: float | None = None,
        progress: bool = False,
    ) -> Classification: ...

    @overload
    def classify(
        self,
        images: Sequence[AnyImage],
        labels: Labels,
        templates: str | Sequence[str] = PLACE,
        language: str | None = None,
        batch_size: int = 64,
        *,
        scale: float | None = None,
        progress: bool = False,
    ) -> Results[Classification]: ...

    def classify(
        self,
        images: AnyImage | Sequence[AnyImage],
        labels: Labels,
        templates: str | Sequence[str] = PLACE,
        language: str | None = None,
        batch_size: int = 64,
        *,
        scale: float | None = None,
        progress: bool = False,
    ) -> Classification | Results[Classification]:
        """The probability of each label for each image: a softmax over scale x similarity.

        ``labels`` is a list of them, or a dict of labels with their words. A label is the mean of its prompts, each of
        its words in each of ``templates``, which have ``{}`` in the word's place. ``scale`` None takes what the model
        has learned, or else CLIP's 100; the result says which. A bias, such as the sigmoid loss learns, is the same for
        all labels and changes nothing. Raises UserError for labels, templates and images that are none.
        """
        given: Given[AnyImage] = Given.of("images", images)
        words = label_words(labels)
        prompts: Sequence[str] = Given.of("templates", templates).items
        check_templates([check_text(template, "templates") for template in prompts])
        chosen = chosen_scale(scale, self.scale, "this model")
        classes = self.label_vectors(words, prompts, language)
        shares = class_probabilities(self._embed_images(given, batch_size, progress), classes, chosen.value)
        found = [
            Classification(tuple(words), tuple(row), chosen, image)
            for image, row in zip(given.items, shares.tolist(), strict=True)
        ]
        return found[0] if given.single else Results(found)

    def label_vectors(
        self, words: Mapping[str, Sequence[str]], templates: Sequence[str], language: str | None = None
    ) -> Tensor:
        """float32[K, E], unit length: each label as the mean of its prompts, its words in every template."""
        prompts, owner = class_prompts(list(words.values()), templates)
        return class_vectors(self.encode_text(prompts, language), owner, len(words))

    # Steps of the calls

    def _attention(self, seen: Tensor, caption: Caption) -> Attention:
        """Of the image uint8[1, 3, S, S] and its text."""
        with self._computing():
            ids, maps = attention_of_tokens(self.model, self.tokenizer, seen, caption, self.config.max_tokens)
        words, word_maps = words_of_tokens(self.tokenizer, ids, maps)
        tokens = tuple(self.tokenizer.decode([one]) for one in ids)
        return Attention(caption.text, tokens, maps, tuple(words), word_maps, seen[0].cpu())


def _distinct(written: Sequence[Written]) -> list[Written]:
    """The first of each text, in order."""
    first: dict[str, Written] = {}
    for one in written:
        first.setdefault(one.text, one)
    return list(first.values())


def _caption(image: AnyImage, written: Sequence[Written]) -> WrittenCaption:
    """The first of an image's captions, with the others as its alternatives."""
    first, *others = (
        WrittenCaption(one.text, one.hypothesis.log_probabilities, (), image, one.score) for one in written
    )
    return replace(first, alternatives=tuple(others))
