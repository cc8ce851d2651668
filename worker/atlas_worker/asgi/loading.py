"""Import the application that the command line names, and say clearly what is wrong with it."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any


class AppNameError(ValueError):
    """No application has this name; the text says what is taken."""


class AppImportError(ImportError):
    """The application's module is there and fails; its traceback has been printed."""


def load_app(name: str, directory: str) -> Any:
    """Return what `module:attribute` names, modules being looked for in `directory` first.

    Raises `AppNameError` and `AppImportError`.
    """
    module_name, _, attributes = name.partition(":")
    if not module_name or not attributes or "/" in name:
        raise AppNameError(f"{name!r} is no application: module:attribute is taken, as main:app")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    found: Any = _module(module_name, directory)
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise AppNameError(
                f"module {module_name!r} ({_place(module_name)}) has no {attributes!r}: "
                "name the application, or with --factory a function that makes it"
            ) from None
    if not callable(found):
        raise AppNameError(f"{name} is {type(found).__name__}: an ASGI application is callable")
    return found


def _module(name: str, directory: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the module that was asked for, or a package that it is said to be in.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            place = directory or "the working directory"
            raise AppNameError(
                f"no module {error.name!r} in {place} or on Python's path: "
                "check the name, or say with --app-dir where it is"
            ) from None
        traceback.print_exc()
        raise AppImportError(f"module {name!r} needs {error.name!r}, which is missing") from error
    except Exception as error:
        traceback.print_exc()
        raise AppImportError(f"importing module {name!r} failed: {error!r}") from error


def _place(module_name: str) -> str:
    return str(getattr(sys.modules[module_name], "__file__", None) or "a package without a file")
