"""Nested dicts, lists and tuples, as in a training state: mapping their leaves, checking that they can be stored."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_leaves(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """A copy of ``value`` with every leaf replaced by ``change(path, leaf)``; ``path`` is keys and indices joined by /.

    A leaf is anything but a dict, OrderedDict, list or tuple. An instance of their subclasses (a named tuple) is a leaf
    too: it may not be possible to make another one from items alone.
    """
    start = f"{path}/" if path else ""
    if type(value) in (dict, OrderedDict):
        return type(value)((name, map_leaves(item, change, f"{start}{name}")) for name, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(map_leaves(item, change, f"{start}{index}") for index, item in enumerate(value))
    return change(path, value)


def check_storable(value: Any, key: str) -> None:
    """Raises TypeError if ``torch.load(weights_only=True)`` could not read ``value``; names the place below ``key``.

    Tensors, numbers, strings, bytes, None and dicts, lists, tuples of them can be stored.
    """
    if type(value) in (dict, OrderedDict):
        for name, item in value.items():
            check_storable(name, f"{key} (a key)")
            check_storable(item, f"{key}.{name}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            check_storable(item, f"{key}.{index}")
    elif value is not None and type(value) not in (bool, int, float, str, bytes) and not isinstance(value, Tensor):
        raise TypeError(f"{key} is a {type(value).__name__}, which a checkpoint could not be loaded with")
