"""Parts: the config nodes with a ``_target_``, checked against their constructor before anything is built.

A part is a slot with real alternatives (encoder, bridge, decoder, objective, data source, evaluator). Its node names a
class or function and gives its arguments::

    encoder:
      _target_: mmlm.model.encoders.timm_vit.TimmVit
      depth: 4

``check_part`` binds every key to the signature and checks simple types, so that a typo is refused by name at once and
not after the data has been loaded. ``build_part`` does the same check of the *whole* node and only then calls anything.

Hydra's own ``instantiate`` differs: it calls any importable object (a config from a shared folder would run code),
knows no types and reports a wrong key only when it gets to the call.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmlm.core.errors import ArgumentError, UserError
from mmlm.core.keyed_start import keyed_start
from mmlm.core.wording import LISTS, MAPPINGS, describe, did_you_mean, shown
from mmlm.experiment.kinds import KINDS, NO_KIND, Kind, kinds_of_slot
from mmlm.experiment.targets import resolve

_NOTHING: Mapping[str, object] = types.MappingProxyType({})
_UNIONS = (typing.Union, types.UnionType)


class _MisfitError(Exception):
    """Raised for a plain value that does not fit its annotation, and caught in this file."""

    def __init__(self, key: str, value: object, hint: object) -> None:
        super().__init__(f"{key}: {shown(value)} is not {describe(hint)}")
        self.key = key


@dataclass(frozen=True)
class _Call:
    """A part that is checked and not built yet: the constructor and its arguments, which may hold further calls."""

    slot: str
    """The key of its node in the config."""
    target: Callable[..., object]
    arguments: Mapping[str, object]
    supplied: tuple[str, ...]
    """Names that the signature asks for and that ``build_part`` is given as ``runtime``."""

    def run(self, runtime: Mapping[str, object]) -> object:
        """Builds the nested parts first, then this one.

        The initial weights of each depend on the run's seed and on its own key in the config: on no other part. That
        key is also put in front of what the constructor says about one of its arguments.
        """
        given = {name: _run(value, runtime) for name, value in self.arguments.items()}
        try:
            with keyed_start(self.slot):
                return self.target(**given, **{name: runtime[name] for name in self.supplied})
        except ArgumentError as error:
            raise UserError(f"{self.slot}.{error}") from None


@dataclass(frozen=True)
class _Rules:
    """The rules for a node and all nodes nested in it."""

    runtime: frozenset[str]
    """Names of the arguments that are supplied when the part is built, and that a config may not set."""
    plugins: tuple[str, ...]
    """Packages, besides mmlm, that a ``_target_`` may lie in."""


def check_part(node: object, slot: str, runtime: Collection[str] = (), plugins: Collection[str] = ()) -> None:
    """Checks a part's node and the parts nested in it, building nothing.

    ``slot`` is the key of the node in the config (``data.train``) and heads every message. ``runtime`` names the
    arguments that are supplied when it is built (widths, a tokenizer): a signature may ask for them, a config may not
    set them. ``plugins`` are the packages, besides ``mmlm``, that the user allowed by name. What the slot accepts of
    mmlm follows from its key (``kinds.py``). Raises UserError.
    """
    _plan_part(_plain(node), slot, _Rules(frozenset(runtime), tuple(plugins)), kinds_of_slot(slot))


def build_part(
    node: object, slot: str, runtime: Mapping[str, object] = _NOTHING, plugins: Collection[str] = ()
) -> object:
    """Checks a part's node as ``check_part`` does, then builds it: nested parts first.

    Every part, nested ones too, receives those ``runtime`` values its signature asks for by name. Where the signature
    is annotated, a list becomes the annotated tuple or set, a string the Path, an int the float, and a mapping the
    dataclass. Raises UserError, and whatever a constructor raises; an ArgumentError becomes a UserError with the key.
    """
    rules = _Rules(frozenset(runtime), tuple(plugins))
    return _plan_part(_plain(node), slot, rules, kinds_of_slot(slot)).run(runtime)


def _plain(node: object) -> object:
    """The node as plain dicts and lists, interpolations resolved."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(typing.cast(DictConfig, node), resolve=True)
    return node


def _run(value: object, runtime: Mapping[str, object]) -> object:
    """``value`` with every ``_Call`` in it replaced by the part that the call builds."""
    if isinstance(value, _Call):
        return value.run(runtime)
    if isinstance(value, Mapping):
        return {key: _run(item, runtime) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_run(item, runtime) for item in value)
    return value


def _plan_part(node: object, slot: str, rules: _Rules, kinds: Collection[Kind]) -> _Call:
    """Checks a node, the parts nested in it included, and returns the call that builds it. Raises UserError.

    ``kinds`` are what may stand there (``kinds.py``).
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{slot}: {shown(node)} is not a part; it needs a mapping with a '_target_'")
    target = resolve(node["_target_"], slot, kinds, rules.plugins)
    return _plan_call(target, {key: value for key, value in node.items() if key != "_target_"}, slot, rules)


def _plan_call(target: Callable[..., object], given: Mapping[object, object], slot: str, rules: _Rules) -> _Call:
    """Binds the config's arguments ``given`` to the signature of ``target``, each converted to its annotation.

    Raises UserError for an argument that the signature does not have, one that a config may not set, one that is
    missing, and a value that does not fit.
    """
    name = target.__name__
    parameters = _parameters(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    hints = _hints(target, slot)
    arguments: dict[str, object] = {}
    for key, value in given.items():
        at = f"{slot}.{key}"
        if key in named and key in rules.runtime:
            raise UserError(f"{at}: {name} receives '{key}' from the other parts; remove it from the config")
        if key not in named and not takes_any:
            settable = [key for key in named if key not in rules.runtime]
            raise UserError(f"{at}: {name} takes no '{key}'{did_you_mean(str(key), settable)}")
        try:
            arguments[str(key)] = _fit(value, hints.get(str(key), object), at, rules)
        except _MisfitError as misfit:
            raise UserError(str(misfit)) from None
    supplied = tuple(key for key in named if key in rules.runtime)
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in arguments and key not in supplied:
            expected = describe(hints.get(key, object))
            raise UserError(f"{slot}.{key}: {name} requires '{key}'" + (f", {expected}" if expected else ""))
    return _Call(slot, target, arguments, supplied)


def _parameters(target: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class's constructor or of a function, by name."""
    init = target.__init__ if inspect.isclass(target) else None
    # A class that inherits from a Protocol and has no constructor of its own gets one from ``typing`` that takes
    # ``*args, **kwargs``: its signature would let any key pass.
    if inspect.isfunction(init) and init.__module__ == "typing":
        return {}
    return inspect.signature(target).parameters


def _hints(target: Callable[..., object], slot: str) -> Mapping[str, object]:
    """The resolved annotation of each argument."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError as error:
        # A name imported under TYPE_CHECKING only, usually in a plug-in.
        raise UserError(
            f"{slot}: {target.__name__} annotates an argument with '{error.name}', which its module does not import"
        ) from None


# Values against annotations


def _fit(value: object, hint: object, key: str, rules: _Rules) -> object:
    """``value`` converted to its annotation ``hint``; ``key`` heads messages.

    Raises _MisfitError for a plain value that does not fit, and UserError for a fault inside a nested part.
    """
    if value == "???":
        raise UserError(f"{key}: required, and not set")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kind = hint if origin is None else origin
    if origin is typing.Annotated:
        return _fit(value, arguments[0], key, rules)
    if isinstance(value, Mapping) and "_target_" in value:
        return _fit_part(value, hint, key, rules)
    if origin in _UNIONS:
        return _fit_union(value, hint, key, rules)
    if hint in (object, typing.Any) or isinstance(hint, typing.TypeVar):
        # Nothing is annotated: lists and mappings are still gone through, for the parts that may be nested in them.
        kind = dict if isinstance(value, Mapping) else list if isinstance(value, (list, tuple)) else object
    if kind in LISTS and isinstance(value, (list, tuple)):
        return _fit_list(value, kind, arguments, key, rules)
    if kind in MAPPINGS and isinstance(value, Mapping):
        item_hint = arguments[1] if arguments else object
        _check_flat(value, item_hint, key)
        return {name: _fit(item, item_hint, f"{key}.{name}", rules) for name, item in value.items()}
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _plan_call(kind, value, key, rules)
    return _fit_scalar(value, kind, hint, key)


def _check_flat(value: Mapping[object, object], item_hint: object, key: str) -> None:
    """UserError for a mapping inside of a mapping that is annotated to hold numbers.

    It comes from a name with dots on the command line (``+weights.encoder.norm=2``), where a dot begins another level.
    """
    entries = dict(dotted(value))
    nested = next((name for name in entries if "." in name and name not in value), None)
    if item_hint not in (int, float) or nested is None:
        return
    written = ", ".join(f"{name}: {item}" for name, item in entries.items())
    raise UserError(
        f"{key}.{nested}: '{nested}' is one name, and its dots are read as levels here; write '+{key}={{{written}}}'"
    )


def dotted(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (``a.b.c``, value) for every value of nested mappings; an empty mapping yields nothing."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fit_scalar(value: object, kind: object, hint: object, key: str) -> object:
    """A number, string, boolean or None as ``kind``, the class of the annotation ``hint``. Raises _MisfitError."""
    if kind is object or (kind in (None, types.NoneType) and value is None):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is typing.Literal and any(value == o and type(value) is type(o) for o in typing.get_args(hint)):
        return value
    # The exact type: a bool is an int to Python, but `depth: true` is a mistake.
    if type(value) is kind:
        return value
    raise _MisfitError(key, value, hint)


def _fit_union(value: object, hint: object, key: str, rules: _Rules) -> object:
    """``value`` as the first member of the union ``hint`` that it fits. Raises _MisfitError."""
    told = _MisfitError(key, value, hint)
    # The member of the value's own type comes first: an int stays an int under `float | int`.
    for member in sorted(typing.get_args(hint), key=lambda member: member is not type(value)):
        try:
            return _fit(value, member, key, rules)
        except _MisfitError as misfit:
            if misfit.key != key:  # the fault is inside a list or mapping: its own message says more
                told = misfit
    raise told


def _fit_list(value: Sequence[object], kind: object, arguments: Sequence[object], key: str, rules: _Rules) -> object:
    """A list as ``kind`` (list, tuple, set, ...) of items that fit ``arguments``, those of the annotation."""
    item_hints: Sequence[object] = [arguments[0] if arguments else object] * len(value)
    if kind is tuple and arguments and Ellipsis not in arguments:
        item_hints = arguments
        if len(item_hints) != len(value):
            raise _MisfitError(key, value, types.GenericAlias(tuple, tuple(item_hints)))
    fitted = [_fit(item, item_hints[index], f"{key}.{index}", rules) for index, item in enumerate(value)]
    made: Mapping[object, Callable[[list[object]], object]] = {tuple: tuple, set: set, frozenset: frozenset}
    return made[kind](fitted) if kind in made else fitted


def _fit_part(node: Mapping[str, object], hint: object, key: str, rules: _Rules) -> _Call:
    """The call that builds a nested part. If a class is annotated, the part's class has to be a subclass of it.

    A Protocol is not checked (that would take an instance), nor is the return value of a target that is a function:
    both come from a package that the user has allowed, for of mmlm only the annotated kind is accepted.
    """
    members = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    kinds = [typing.get_origin(member) or member for member in members]
    # An annotation that says nothing allows a part of any kind, and one of another class none of mmlm's.
    named = [KINDS[kind] for kind in kinds if kind in KINDS]
    call = _plan_part(node, key, rules, named or (NO_KIND if _says_something(kinds) else tuple(KINDS.values())))
    if not inspect.isclass(call.target) or not all(inspect.isclass(kind) for kind in kinds):
        return call
    if any(kind is object or typing.Protocol in kind.__bases__ or issubclass(call.target, kind) for kind in kinds):
        return call
    raise UserError(f"{key}: {call.target.__name__} is not {describe(hint)}")


def _says_something(kinds: Sequence[object]) -> bool:
    return not any(kind in (object, typing.Any) or isinstance(kind, typing.TypeVar) for kind in kinds)
