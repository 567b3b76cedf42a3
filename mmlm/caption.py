"""``python -m mmlm.caption run=DIR IMAGE...``: writes one caption an image with a trained run."""

from mmlm.cli.arguments import CaptionArguments
from mmlm.cli.exits import report_user_errors
from mmlm.cli.imports import quick_imports
from mmlm.cli.key_values import parse_key_values
from mmlm.core.errors import UserError


def main(argv: list[str]) -> int:
    """Captions every readable image; returns the exit status. Raises UserError."""
    arguments, paths = parse_key_values(argv, CaptionArguments, positional="IMAGE")
    if not paths:
        raise UserError("no image given; usage: python -m mmlm.caption run=DIR IMAGE...")
    with quick_imports():
        from mmlm.commands.caption import caption_images

    return caption_images(arguments, paths)


if __name__ == "__main__":
    report_user_errors(main)
