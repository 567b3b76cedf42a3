"""The packages that the emoji data set is made from, and the hands (artists) in them.

Only ``prepare_emoji`` needs this file; training reads the Parquet files that it wrote.
"""

from dataclasses import dataclass

from mmlm.data.npm_packages import Package


@dataclass(frozen=True)
class Hand:
    """One artist's drawings: the package they come from, their licence and who is to be credited."""

    name: str
    """Short name: the Parquet file's stem, the ``style`` column and the first half of an example's id."""
    title: str
    package: Package
    licence: str
    """SPDX identifier of the *images'* licence, which may differ from the package's own field."""
    copyright: str
    homepage: str


NOTO_PACKAGE = Package(
    "emoji-datasource-google",
    "16.0.0",
    "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
"""Its ``emoji.json`` is also the list of concepts (code points, group, subgroup)."""

NAMES_PACKAGE = Package(
    "cldr-annotations-full",
    "48.2.0",
    "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
DERIVED_NAMES_PACKAGE = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    "sha512-log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
)

HANDS: tuple[Hand, ...] = (
    Hand(
        "noto",
        "Noto Emoji 2.048",
        NOTO_PACKAGE,
        "Apache-2.0",
        "Google LLC",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Hand(
        "twemoji",
        "Twemoji 16.0.1",
        Package(
            "emoji-datasource-twitter",
            "16.0.0",
            "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ),
        "CC-BY-4.0",
        "Twitter, Inc and other contributors",
        "https://github.com/jdecked/twemoji",
    ),
    Hand(
        "noto_v1",
        "Noto Emoji, first version",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        "Apache-2.0",
        "Google Inc.",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Hand(
        "fxemoji",
        "Firefox OS Emoji",
        Package(
            "@iconify-json/fxemoji",
            "1.2.2",
            "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        ),
        "CC-BY-4.0",
        "Mozilla Foundation",
        "https://github.com/mozilla/fxemoji",
    ),
    Hand(
        "openmoji",
        "OpenMoji 17",
        Package(
            "openmoji",
            "17.0.0",
            "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        ),
        "CC-BY-SA-4.0",
        "Benedikt Groß, Daniel Utz and the OpenMoji contributors",
        "https://openmoji.org",
    ),
    Hand(
        "fluent_flat",
        "Fluent Emoji, flat",
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Hand(
        "fluent_3d",
        "Fluent Emoji, 3D",
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        "MIT",
        "Microsoft Corporation; packaged by LobeHub",
        "https://github.com/microsoft/fluentui-emoji",
    ),
)


def packages() -> tuple[Package, ...]:
    """Every package that the builder needs, without repetition."""
    return (*(hand.package for hand in HANDS), NAMES_PACKAGE, DERIVED_NAMES_PACKAGE)
