"""The notebook of the library runs as it is written, on a tiny run."""

import ast
import json
from pathlib import Path

import mmlm

NOTEBOOK = Path(mmlm.__file__).parents[1] / "experiments" / "using_a_model.ipynb"


def run_cell(source: str, names: dict[str, object]) -> object:
    """Runs a cell and returns the value of its last line, if that is an expression: what a notebook shows."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs_as_it_is_written(trained, monkeypatch, tmp_path, capsys):
    trained()
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, object] = {"__name__": "__main__"}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    pictures = [
        value._repr_html_().count("data:image/webp;base64,") if hasattr(value, "_repr_html_") else 0 for value in shown
    ]
    model, captions, _, nearest, labels, one, found, by_image, looked, difference = shown
    assert repr(model).startswith("MmlmModel: ")
    assert pictures[1:9] == [12, 0, 0, 12, 0, 4, 5, 1 + len(looked.words)]
    assert capsys.readouterr().out.count("true: ") == len(captions) == 12
    assert nearest.endswith("of 12 drawings are nearest to their own name")
    assert len(labels[0].labels) == 12
    assert one[0] in ("a person", "a thing")
    assert one[2].source == "of the run's objective contrastive"
    assert by_image[0].name == "03.png"
    assert len(found) == 4
    assert difference < 1e-5


def test_the_notebook_is_small_and_names_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 20_000
    assert "/home" not in text
    assert "/tmp" not in text
