"""Import a large module while the garbage collector is off."""

import gc
import importlib
from types import ModuleType


def import_without_gc(name: str) -> ModuleType:
    """Import a module that imports many others.

    The collector would search through all of them again and again: without it, an import of torch or Prefect takes a
    fifth less.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()
