"""Telling loss functions apart, so that draws under two of them do not mix in one journal."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

import numpy as np
from torch import Tensor

from losskernel.sampling.inputs import fingerprint


def loss_fingerprint(loss: Any) -> str:
    """Name of a loss function and 8 hex digits of what it computes with (SHA-256).

    Of a Python function: its compiled code, default arguments, and the values that it closes over.
    Of a ``functools.partial`` or a bound method: those of the function, and the arguments. Of any
    other callable object, such as a module: the code of its methods, and its attributes. What a
    function reads from global variables is not seen, and another Python version compiles to other
    code.
    """
    base = loss
    while isinstance(base, functools.partial):
        base = base.func
    named = base if hasattr(base, "__qualname__") else type(base)
    digest = hashlib.sha256(repr(_described(loss, {})).encode()).hexdigest()[:8]
    return f"{named.__module__}.{named.__qualname__} {digest}"


def _described(value: Any, seen: dict[int, Any]) -> Any:
    """``value`` as nested tuples of text, the same in every process; each object once.

    ``seen`` keeps the objects alive: an identity may be that of another object later.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) in seen:
        return "..."
    seen[id(value)] = value

    def each(values) -> tuple:
        return tuple(_described(item, seen) for item in values)

    if isinstance(value, Tensor):
        return fingerprint([value])
    if isinstance(value, np.ndarray | np.generic):
        content = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return (str(value.dtype), np.shape(value), content)
    if isinstance(value, tuple | list):
        return each(value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value)))
    if isinstance(value, dict):
        return tuple((str(key), _described(item, seen)) for key, item in value.items())
    if isinstance(value, functools.partial):
        return each((value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return each((value.__func__, value.__self__))
    if isinstance(value, types.CodeType):
        return each((value.co_code, value.co_names, value.co_consts))
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return each((value.__code__, value.__defaults__, value.__kwdefaults__, cells))
    if isinstance(value, type):
        own = {name: part for name, part in vars(value).items() if callable(part)}
        return (value.__qualname__, *each((own if value.__module__ != "builtins" else None,)))
    if isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        return value.__name__
    state = getattr(value, "__dict__", None)
    if state is None and " at 0x" not in repr(value):  # a Fraction, a range, ...
        state = repr(value)
    return (type(value).__qualname__, *each((type(value), state)))
