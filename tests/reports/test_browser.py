"""The page in a real browser: its script runs, nothing is blocked or fetched, and nothing is wider than the window."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mmlm.record.changes import Change, Changes, record_changes
from mmlm.reports.contact_sheet import FoundImage, contact_sheet, thumbnail_uri
from mmlm.reports.page import write_report
from tests.reports.conftest import write_items

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
]


def open_page(address: str, profile: Path, *flags: str) -> tuple[str, str]:
    """The document after its script ran, and what the browser's console said."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_page_in_a_browser(make_run, change_json, tmp_path):
    folder = make_run()
    attack = "<img src=x onerror=\"document.title='owned'\">"
    change_json(folder / "samples.json", lambda c: c["splits"]["val_style"]["examples"][1].update(generated=attack))
    address = write_report(folder).as_uri()
    page, console = open_page(address, tmp_path / "profile")
    assert console == ""
    assert "<title>study, seed 3</title>" in page
    assert 'class="scripted"' in page
    assert re.findall(r'aria-selected="(true|false)"[^>]*>(\w+)</button>', page) == [
        ("true", "val_style"),
        ("false", "val_concepts"),
    ]
    assert len(re.findall(r'<div class="panel"[^>]*\shidden=""', page)) == 1
    assert len(re.findall(r"<figure class=\"(?:exact|wrong)\"", page)) == 6
    # Three terms of the loss, five validation scores, the learning rate.
    assert page.count('<svg class="chart"') == 9

    # A link may name the split it wants to show.
    page, _ = open_page(address + "#val_concepts", tmp_path / "profile")
    assert re.findall(r'aria-selected="true"[^>]*>(\w+)</button>', page) == ["val_concepts"]


def test_tabs_of_two_sections_and_the_values_under_the_pointer(make_run, tmp_path):
    folder = make_run()
    write_items(folder)
    page = write_report(folder)
    # A pointer over the middle of the first chart of a score, and a click on the second tab of the breakdown.
    probe = """<script>
    const first = (plot) => JSON.parse(plot.dataset.curves).lines[0].name;
    const plot = [...document.querySelectorAll('.plot')].find((one) => first(one) === 'val_style');
    const box = plot.getBoundingClientRect();
    plot.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + 0.55 * box.width, clientY: box.top }));
    document.getElementById('tab-breakdown-1').click();
    </script></body>"""
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    shown, console = open_page(page.as_uri(), tmp_path / "profile")
    assert console == ""
    told = re.search(r'<div class="told"[^>]*>(.*?)</div></div>', shown)[1]
    assert re.sub(r"<[^>]*>", " ", told).split()[:2] == ["step", "30"]
    assert "val_style 30%" in told
    hidden = re.findall(r'id="panel-(\w+-\d)"[^>]*\shidden=""', shown)
    assert hidden == ["breakdown-0", "samples-1"], "each section shows the split that was chosen there"


def widths_on_a_telephone(text: str, folder: Path) -> tuple[int, int]:
    """The pixels that a page needs, and those that there are, in a window of 380."""
    # A frame is as narrow as one asks; a headless window is not. The frame must share the origin to be measured.
    widths = "[document.body.scrollWidth, document.documentElement.clientWidth].join(' of ')"
    probe = text.replace("</body>", f"<script>document.title = {widths}</script></body>")
    frame = folder / "frame.html"
    escaped = probe.replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<iframe style="width:380px;height:900px;border:0" srcdoc="{escaped}"></iframe>'
        "<script>onload = () => { document.title = frames[0].document.title }</script>",
        encoding="utf-8",
    )
    shown, _ = open_page(frame.as_uri(), folder / "profile")
    needed, there = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown).groups())
    return needed, there


def test_page_fits_a_telephone(make_run, tmp_path):
    folder = make_run()
    write_items(folder)
    record_changes(folder, Changes("caption_base", [Change("data.train." + "long_" * 30, "1" * 90, None)]))
    needed, there = widths_on_a_telephone(write_report(folder).read_text(encoding="utf-8"), tmp_path)
    assert needed == there <= 380


def test_the_page_of_a_search_fits_a_telephone_and_loads_nothing(tmp_path):
    long = "a_name_without_a_blank_" * 12
    uri = thumbnail_uri(torch.full((3, 40, 900), 90, dtype=torch.uint8))
    found = [FoundImage(f"{long}{i}.png", value, uri) for i, value in enumerate((1.0, 0.5, -0.2))]
    page = contact_sheet(long, uri, found, f"among 3 images in {long}")
    (tmp_path / "search.html").write_text(page, encoding="utf-8")
    shown, console = open_page((tmp_path / "search.html").as_uri(), tmp_path / "profile")
    assert console == "", "nothing is blocked or missing"
    assert shown.count("<figure>") == 3
    needed, there = widths_on_a_telephone(page, tmp_path)
    assert needed == there <= 380
