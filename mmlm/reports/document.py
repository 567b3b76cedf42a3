"""What every page is made of beside its content: one HTML file that needs no other and no network."""

from html import escape

from mmlm.reports.style import STYLE

# A page fetches nothing from anywhere, even if a caption or a config holds HTML that would.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: str, footer: str, style: str = "", script: str = "") -> str:
    """The whole page. ``body``, ``style`` (beside the style of all pages) and ``script`` are taken as they are.

    ``title`` and ``footer`` are texts, which are escaped here.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}"
        f"<footer>{escape(footer)}</footer>\n</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )
