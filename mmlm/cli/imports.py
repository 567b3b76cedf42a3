"""What a command imports once its arguments have been read."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Context of the imports of a command's work, which come after its arguments have been read and found right.

    So ``--help`` and a mistake are answered without importing torch. The garbage collector is off meanwhile, and what
    has been imported is not looked at by it afterwards: importing makes a million objects that live to the end, and
    going through them again and again costs a fifth of the CPU time of the imports. Does nothing where torch is there
    already (a notebook, a test), since objects that nobody needs any more would be kept with the others.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
