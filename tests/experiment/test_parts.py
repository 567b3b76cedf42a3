"""Parts: what a config may name, how keys and types are refused, and that building gives what was checked."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmlm.core.batch import Caption
from mmlm.core.errors import ArgumentError, UserError
from mmlm.experiment.parts import build_part, check_part

PLUGIN = '''
"""A plug-in as a user would write it."""
import os
from mmlm.core.errors import ArgumentError, UserError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional, Protocol

built = []

class Source(Protocol):
    def __len__(self) -> int: ...

class Encoder:
    pass

@dataclass
class Augment:
    scale: float = 1.0
    flip: bool = False

class VitEncoder(Encoder):
    def __init__(self, width: int, num_queries: int = 4, rate: float = 0.0, name: str = "vit", flag: bool = False,
                 pool: Literal["mean", "token"] = "mean", layers: Sequence[int] = (), folder: Optional[Path] = None,
                 augment: Augment | None = None, size: int | tuple[int, int] = 32,
                 table: dict[str, float] | None = None):
        built.append("VitEncoder")
        self.given = dict(locals())

class Images:
    def __init__(self, split: str): self.split = split
    def __len__(self): return 3

class Joined:
    def __init__(self, sources: list[Source], encoder: Encoder | None = None, anything=None):
        built.append("Joined")
        self.sources, self.encoder, self.anything = sources, encoder, anything

def doubled(number: int, *, seed: int) -> int:
    return number * 2 + seed

class Fragile:
    def __init__(self, hidden: "NotImported"): ...

class Plain: ...

class PlainSource(Source):
    def __len__(self): return 3

def takes_any(first: int, **rest): return first, rest

def _private(): ...

def fails(): return 1 / 0

@dataclass
class Blur:
    radius: int = 1
    def __post_init__(self):
        if self.radius < 0:
            raise ArgumentError(f"radius: {self.radius} must be at least 0")

class Tower:
    def __init__(self, depth: int = 1, inner: object = None, layers: Sequence[object] = (),
                 table: dict[str, object] | None = None, blur: Blur | None = None):
        if depth < 1:
            raise ArgumentError(f"depth: {depth} must be at least 1; use table.depth=1")
        if depth > 9:
            raise UserError(f"data.max_tokens: {depth} is too deep for it")
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plug-in package ``my_parts`` that can be imported; the module itself."""
    (tmp_path / "my_parts.py").write_text(PLUGIN)
    (tmp_path / "broken_parts.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_parts"
    sys.modules.pop("my_parts", None)
    sys.modules.pop("broken_parts", None)


def refusal(node, runtime=(), plugins=("my_parts", "broken_parts")):
    """The message with which the node is refused, by check_part and build_part alike."""
    with pytest.raises(UserError) as checked:
        check_part(node, "encoder", runtime, plugins)
    with pytest.raises(UserError) as built:
        build_part(node, "encoder", dict.fromkeys(runtime, 8), plugins)
    assert str(checked.value) == str(built.value)
    assert "\n" not in str(checked.value)
    return str(checked.value)


def vit(**settings):
    return {"_target_": "my_parts.VitEncoder", "width": 8, **settings}


def test_builds_a_part_of_the_package():
    node = OmegaConf.create({"word": "cat", "part": {"_target_": "mmlm.core.batch.Caption", "text": "a ${word}"}})
    check_part(node.part, "part")
    assert build_part(node.part, "part") == Caption("a cat")


@pytest.mark.usefixtures("plugin")
def test_gives_the_runtime_values_that_are_asked_for_to_nested_parts_too():
    node = {"_target_": "my_parts.Joined", "sources": [], "anything": {"deep": [{"_target_": "my_parts.VitEncoder"}]}}
    check_part(node, "data", runtime=["width", "vocab_size"], plugins=["my_parts"])
    joined = build_part(node, "data", {"width": 16, "vocab_size": 5}, ["my_parts"])
    assert joined.anything["deep"][0].given["width"] == 16
    number = build_part({"_target_": "my_parts.doubled", "number": 3}, "data", {"seed": 1}, ["my_parts"])
    assert number == 7


@pytest.mark.usefixtures("plugin")
def test_values_become_what_the_signature_asks_for():
    node = vit(rate=1, folder="some/where", size=[3, 4], layers=[1, 2], augment={"scale": 2}, table={"a": 1})
    given = build_part(node, "encoder", plugins=["my_parts"]).given
    assert given["rate"] == 1.0
    assert type(given["rate"]) is float
    assert given["folder"] == Path("some/where")
    assert given["size"] == (3, 4)
    assert (given["augment"].scale, given["augment"].flip) == (2.0, False)
    assert given["table"] == {"a": 1.0}
    assert given["num_queries"] == 4


@pytest.mark.usefixtures("plugin")
def test_nothing_is_built_when_a_nested_part_is_wrong():
    sources = [{"_target_": "my_parts.Images", "split": "train"}, {"_target_": "my_parts.Images", "splt": "val"}]
    node = {"_target_": "my_parts.Joined", "encoder": vit(), "sources": sources}
    assert refusal(node) == "encoder.sources.1.splt: Images takes no 'splt'; did you mean 'split'?"
    assert sys.modules["my_parts"].built == []


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_querys": 3}, "encoder.num_querys: VitEncoder takes no 'num_querys'; did you mean 'num_queries'?"),
        ({"num_queries": "abc"}, "encoder.num_queries: 'abc' is not an int"),
        ({"num_queries": True}, "encoder.num_queries: true is not an int"),
        ({"num_queries": 1.5}, "encoder.num_queries: 1.5 is not an int"),
        ({"num_queries": None}, "encoder.num_queries: null is not an int"),
        ({"num_queries": "???"}, "encoder.num_queries: required, and not set"),
        ({"rate": "fast"}, "encoder.rate: 'fast' is not a float"),
        ({"name": 3}, "encoder.name: 3 is not a string"),
        ({"flag": 1}, "encoder.flag: 1 is not true or false"),
        ({"pool": "max"}, "encoder.pool: 'max' is not one of 'mean', 'token'"),
        ({"layers": [1, "b"]}, "encoder.layers.1: 'b' is not an int"),
        ({"layers": 3}, "encoder.layers: 3 is not a list in which each item is an int"),
        ({"folder": 3}, "encoder.folder: 3 is not a path or null"),
        ({"size": [1, 2, 3]}, "encoder.size: [1, 2, 3] is not an int or a list of an int, an int"),
        ({"size": [1, "b"]}, "encoder.size.1: 'b' is not an int"),
        ({"augment": {"scal": 1}}, "encoder.augment.scal: Augment takes no 'scal'; did you mean 'scale'?"),
        ({"augment": 3}, "encoder.augment: 3 is not an Augment (a mapping of its settings) or null"),
        ({"table": {"a": "b"}}, "encoder.table.a: 'b' is not a float"),
        ({"table": {"a": {}}}, "encoder.table.a: {} is not a float"),
        (
            {"table": {"a": {"b": {"c": 1.0}}, "d.e": 2.0}},
            "encoder.table.a.b.c: 'a.b.c' is one name, and its dots are read as levels here; write "
            "'+encoder.table={a.b.c: 1.0, d.e: 2.0}'",
        ),
        ({"_partial_": True}, "encoder._partial_: VitEncoder takes no '_partial_'; there are: augment, flag,"),
    ],
)
def test_refuses_wrong_keys_and_types(settings, message):
    assert refusal(vit(**settings)).startswith(message)


@pytest.mark.usefixtures("plugin")
def test_refuses_what_is_missing_or_supplied_twice():
    assert refusal({"_target_": "my_parts.VitEncoder"}) == "encoder.width: VitEncoder requires 'width', an int"
    message = "encoder.width: VitEncoder receives 'width' from the other parts; remove it from the config"
    assert refusal(vit(), runtime=["width"]) == message


@pytest.mark.usefixtures("plugin")
def test_a_nested_part_has_to_be_of_the_annotated_class():
    node = {"_target_": "my_parts.Joined", "sources": [], "encoder": {"_target_": "my_parts.Images", "split": "a"}}
    assert refusal(node) == "encoder.encoder: Images is not an Encoder part or null"
    plain = {"_target_": "my_parts.Joined", "sources": ["train"]}
    assert refusal(plain) == "encoder.sources.0: 'train' is not a Source part"
    assert "is not an int" in refusal(vit(num_queries={"_target_": "my_parts.Images", "split": "a"}))


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "os.system",
            "encoder: _target_ 'os.system' is not allowed; it may only name mmlm.model.encoders.*, my_parts.*, "
            "broken_parts.*",
        ),
        ("mmlmx.Caption", "encoder: _target_ 'mmlmx.Caption' is not allowed"),
        ("mmlm", "encoder: _target_ 'mmlm' is not allowed"),
        # What is no encoder: functions, parts of other slots, and helpers of encoders.
        ("mmlm.checkpoints.files.remove", "encoder: _target_ 'mmlm.checkpoints.files.remove' is not allowed"),
        ("mmlm.model.bridges.q_former.QFormer", "encoder: _target_ 'mmlm.model.bridges.q_former.QFormer' is not"),
        (
            "mmlm.model.encoders.timm_vit.ConvolutionalStem",
            "encoder: _target_ 'mmlm.model.encoders.timm_vit.ConvolutionalStem' is no Encoder; there are: TimmVit",
        ),
        # Names that a module merely imports do not become its parts.
        (
            "mmlm.model.encoders.timm_vit.ArgumentError",
            "encoder: _target_ 'mmlm.model.encoders.timm_vit.ArgumentError': mmlm.model.encoders.timm_vit has no",
        ),
        ("my_parts.os.system", "encoder: _target_ 'my_parts.os.system': there is no module 'my_parts.os'"),
        ("my_parts.UserError", "encoder: _target_ 'my_parts.UserError': my_parts has no 'UserError'"),
        ("my_parts._private", "encoder: _target_ 'my_parts._private' is not the dotted name of a public"),
        (
            "mmlm.model.encoders.timm_vit.TimmVit.__init__",
            "encoder: _target_ 'mmlm.model.encoders.timm_vit.TimmVit.__init__' is not allowed",
        ),
        (
            "mmlm.model.encoders.timm_vit.TimmVt",
            "encoder: _target_ 'mmlm.model.encoders.timm_vit.TimmVt': mmlm.model.encoders.timm_vit has no 'TimmVt'; "
            "did you mean 'TimmVit'?",
        ),
        (
            "mmlm.model.encoders.timm_vt.TimmVit",
            "encoder: _target_ 'mmlm.model.encoders.timm_vt.TimmVit': there is no module "
            "'mmlm.model.encoders.timm_vt'; did you mean 'timm_vit'?",
        ),
        ("broken_parts.X", "encoder: broken_parts needs the package 'surely_not_installed'; install it"),
        ("my_parts.Fragile", "encoder: Fragile annotates an argument with 'NotImported', which its module does not"),
    ],
)
def test_refuses_targets(target, message):
    assert refusal({"_target_": target}).startswith(message)


def test_plugins_have_to_be_named(plugin):
    with pytest.raises(UserError, match="is not allowed"):
        check_part(vit(), "encoder")
    check_part(vit(), "encoder", plugins=[plugin])


@pytest.mark.parametrize("node", [None, "vit", 3, {"width": 3}, {"_target_": 3}, ["vit"]])
def test_refuses_what_is_no_part(node):
    assert "is not a part; it needs a mapping with a '_target_'" in refusal(node)


@pytest.mark.usefixtures("plugin")
def test_a_constructor_that_takes_anything_gets_it():
    node = {"_target_": "my_parts.takes_any", "first": 1, "other": [1]}
    assert build_part(node, "encoder", plugins=["my_parts"]) == (1, {"other": [1]})


@pytest.mark.usefixtures("plugin")
def test_what_a_constructor_raises_comes_through():
    with pytest.raises(ZeroDivisionError):
        build_part({"_target_": "my_parts.fails"}, "encoder", plugins=["my_parts"])


def tower(**settings):
    return {"_target_": "my_parts.Tower", **settings}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("node", "message"),
    [
        (tower(depth=0), "odd.slot.depth: 0 must be at least 1; use table.depth=1"),
        (tower(inner=tower(depth=0)), "odd.slot.inner.depth: 0 must be at least 1; use table.depth=1"),
        (
            tower(inner=tower(inner=tower(depth=-1))),
            "odd.slot.inner.inner.depth: -1 must be at least 1; use table.depth=1",
        ),
        (tower(layers=[tower(), tower(depth=0)]), "odd.slot.layers.1.depth: 0 must be at least 1; use table.depth=1"),
        (
            tower(layers=[tower(table={"a": tower(depth=0)})]),
            "odd.slot.layers.0.table.a.depth: 0 must be at least 1; use table.depth=1",
        ),
        # The settings of a part, which have no ``_target_``.
        (tower(blur={"radius": -1}), "odd.slot.blur.radius: -1 must be at least 0"),
        # Both are wrong: the inner part is built first.
        (tower(depth=0, inner=tower(depth=-2)), "odd.slot.inner.depth: -2 must be at least 1; use table.depth=1"),
        # A message about a key elsewhere is left as it is.
        (tower(depth=10), "data.max_tokens: 10 is too deep for it"),
        (tower(inner=tower(depth=10)), "data.max_tokens: 10 is too deep for it"),
    ],
)
def test_what_a_part_says_of_its_argument_gets_the_part_s_own_key(node, message):
    check_part(node, "odd.slot", plugins=["my_parts"])
    with pytest.raises(UserError) as built:
        build_part(node, "odd.slot", plugins=["my_parts"])
    assert str(built.value) == message
    assert not isinstance(built.value, ArgumentError), "or another builder would put a second key in front"
    assert built.value.__suppress_context__ or built.value.__context__ is None


@pytest.mark.usefixtures("plugin")
def test_a_part_that_python_builds_names_its_argument_only():
    build_part(tower(), "odd.slot", plugins=["my_parts"])
    with pytest.raises(ArgumentError, match=r"^depth: 0 must be at least 1;"):
        sys.modules["my_parts"].Tower(depth=0)


def test_an_objective_s_argument_is_told_by_the_name_that_the_objective_has_in_the_sum():
    matching = {"_target_": "mmlm.objectives.matching.Matching", "temperature": -1.0}
    node = {"_target_": "mmlm.objectives.weighted_sum.WeightedSum", "objectives": {"pairs": matching}}
    with pytest.raises(UserError, match=r"^objective\.objectives\.pairs\.temperature: -1\.0 must be above 0"):
        build_part(node | {"weights": {"pairs": 1.0}}, "objective")
    ramp = {"_target_": "mmlm.objectives.weights.Ramp", "first": 2, "last": 1}
    right = node | {"objectives": {"pairs": matching | {"temperature": 0.1}}, "weights": {"pairs": ramp}}
    with pytest.raises(UserError, match=r"^objective\.weights\.pairs\.first: 2 and last=1 must be steps in order$"):
        build_part(right, "objective")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["Plain", "PlainSource"])
def test_a_class_without_a_constructor_takes_nothing(name):
    node = {"_target_": f"my_parts.{name}"}
    assert type(build_part(node, "encoder", plugins=["my_parts"])).__name__ == name
    assert refusal(node | {"size": 3}) == f"encoder.size: {name} takes no 'size'"
