"""Load the user's own classes, which parameters name as ``package.module:ClassName``.

Importing a module runs its code: parameters are only checked for the form of the name, and the class is loaded where it
is used.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AfterValidator

from tasks.runtime.errors import UserError

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_FORM = "package.module:ClassName"
_T = TypeVar("_T")


class ValueNotAllowedError(ValueError):
    """A parameter has a value that is not allowed; the text says which ones are."""


def is_class_path(name: str) -> bool:
    """Return whether a value has the form ``package.module:ClassName``."""
    return _CLASS_PATH.fullmatch(name) is not None


def name_or_class_path(*names: str) -> AfterValidator:
    """Return a validator of a field that takes one of ``names`` or a class of the user's own; it imports nothing."""
    allowed = f"{', '.join(map(repr, names))} or {_FORM}"

    def check(value: str) -> str:
        if value not in names and not is_class_path(value):
            raise ValueNotAllowedError(allowed)
        return value

    return AfterValidator(check)


def load_extension(parameter: str, class_path: str, protocol: type[_T], folder: Path, *arguments: Any) -> _T:
    """Import the class that a parameter names, check that it has the protocol's methods, and return an instance.

    Args:
        parameter: name of the parameter, for messages.
        class_path: its value, ``package.module:ClassName``.
        protocol: the instance must have its public attributes, and methods that take the same arguments.
        folder: the campaign; modules in it are found, after those that are installed.
        arguments: for the constructor.

    Raises:
        UserError: the module cannot be imported, has no such class, the class lacks a method or a method takes other
            arguments, or the constructor raises.
    """

    def mistake(expected: str, fix: str) -> UserError:
        return UserError("params.yaml", f"{parameter} is {class_path!r}, expected {expected}", fix)

    found = _import_class(class_path, folder, mistake)
    missing = sorted(name for name in _methods(protocol) if not callable(getattr(found, name, None)))
    if missing:
        raise mistake(f"a class with the methods {', '.join(missing)}", f"Add them: {_documentation(protocol)}.")
    for name, method in _methods(protocol).items():
        if not _takes_arguments_of(getattr(found, name), method):
            signature = f"{name}{inspect.signature(method)}"
            raise mistake(f"a class whose method is {signature}", f"Change its arguments: {_documentation(protocol)}.")
    try:
        instance: _T = found(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise mistake(
            f"a class that can be created ({type(error).__name__}: {error})", f"{_documentation(protocol)}."
        ) from error
    absent = sorted(name for name in _attributes(protocol) if not hasattr(instance, name))
    if absent:
        raise mistake(f"a class with the attributes {', '.join(absent)}", f"Add them: {_documentation(protocol)}.")
    return instance


def _import_class(class_path: str, folder: Path, mistake: Callable[[str, str], UserError]) -> Any:
    module_name, _, class_name = class_path.partition(":")
    # Appended: a file of the campaign never takes the place of a library.
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module's own code raises
        reason = f"{type(error).__name__}: {error}"
        raise mistake(
            f"a class in a module that can be imported ({reason})",
            "Put the module into the campaign's folder, or install it beside Gleaner.",
        ) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        raise mistake(f"the name of a class in {module_name}", "Correct the part after the colon.")
    return found


def _attributes(protocol: type) -> dict[str, Any]:
    return {name: value for name, value in vars(protocol).items() if not name.startswith("_")}


def _methods(protocol: type) -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in _attributes(protocol).items() if inspect.isfunction(value)}


def _takes_arguments_of(method: Callable[..., Any], expected: Callable[..., Any]) -> bool:
    """Whether a call of ``expected`` is a call of ``method``; both are looked up on the class, so ``self`` counts."""
    parameters = inspect.signature(expected).parameters
    keywords = {name: None for name, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY}
    try:
        inspect.signature(method).bind(*(None for name in parameters if name not in keywords), **keywords)
    except TypeError:
        return False
    return True


def _documentation(protocol: type) -> str:
    return f"the protocol is {protocol.__module__}.{protocol.__qualname__}, the guide docs/guides/extend.md"
