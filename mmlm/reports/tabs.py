"""One panel for each split, with a tab to choose it by. Without JavaScript, and on paper, all are there at once."""

from collections.abc import Mapping
from html import escape


def tabbed(section: str, panels: Mapping[str, str]) -> str:
    """The panels (HTML) of the splits by name. ``section`` is a word that keeps ids of several sections apart."""
    tabs = "".join(
        f'<button role="tab" id="tab-{section}-{i}" aria-controls="panel-{section}-{i}" data-split="{escape(name)}" '
        f'aria-selected="{"true" if i == 0 else "false"}">{escape(name)}</button>'
        for i, name in enumerate(panels)
    )
    shown = "".join(
        f'<div class="panel" role="tabpanel" id="panel-{section}-{i}" aria-labelledby="tab-{section}-{i}">'
        f'<h3 class="panel-title">{escape(name)}</h3>{panel}</div>'
        for i, (name, panel) in enumerate(panels.items())
    )
    return f'<div class="tabs" role="tablist" aria-label="Splits">{tabs}</div>{shown}'
