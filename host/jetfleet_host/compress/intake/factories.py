"""``package.module:function``: a name for a piece of the user's own Python. It is imported from the current folder too."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jetfleet_contract.errors import InputError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_factory(text: str) -> bool:
    """True for ``package.module:function``."""
    return _NAME.fullmatch(text) is not None


def load_factory(text: str) -> Callable[[], Any]:
    """The function of that name.

    Raises:
        InputError: `factory.name` for another form, `factory.import` when the module cannot be imported (with the line that failed),
            `factory.missing` when it has no such function.
    """
    if not is_factory(text):
        raise InputError("factory.name", f"{text[:80]!r} is not package.module:function", remedy="for example models.resnet:make")
    module_name, _, path = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # the console script does not add it, `python -m` does
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise InputError("factory.import", f"the module {module_name} cannot be imported: {said(error)}", where=raised_in(error) or text,
                         remedy="run jetfleet from the folder that holds the module, with all that it imports installed") from error
    for name in path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise InputError("factory.missing", f"the module {module_name} has no function {path}", where=str(text),
                         remedy="give the name of a function that takes nothing")
    return found  # type: ignore[no-any-return]


def call_factory(text: str) -> Any:
    """What the function gives. InputError `factory.raised` with its error and line, and those of `load_factory`."""
    factory = load_factory(text)
    try:
        return factory()
    except Exception as error:
        raise InputError("factory.raised", f"{text} raised {said(error)}", where=raised_in(error) or text,
                         remedy="call it in a Python shell: it must work with no arguments") from error


def said(error: BaseException) -> str:
    """Type and first line of an error, at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].rstrip(": ")


def raised_in(error: BaseException) -> str:
    """``file:line`` of the innermost frame that is neither ours nor the import system's; empty when there is none."""
    foreign = [frame for frame in traceback.extract_tb(error.__traceback__)
               if frame.filename != __file__ and "importlib" not in frame.filename]
    return f"{foreign[-1].filename}:{foreign[-1].lineno}" if foreign else ""
