"""A user's function by what it does, so that a changed one is not taken for the one that ran."""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from inspect import unwrap
from types import CodeType, FunctionType, MethodType
from typing import Any

from evomerge.recipe import canonical_json

Content = list[Any]  # nested lists of text: the same in every process


def function_hash(function: Callable[..., Any]) -> str:
    """sha256 of a function's bytecode, constants and defaults, and of what these lead to.

    That is: the functions of the same module that it calls, those that it encloses, the methods of
    its own object; numbers and text that it reads from outside; and the arguments of a
    `functools.partial`. Lists, tensors and other objects count by their type alone, as they may
    change while a search runs. File names, line numbers and addresses do not count; bytecode
    differs between minor versions of Python.
    """
    return hashlib.sha256(canonical_json(_callable(function, set())).encode()).hexdigest()


def globals_read(function: FunctionType) -> dict[str, Any]:
    """Name -> value of what a function reads from its module; None where that has no such name."""
    names = _names(function.__code__, "LOAD_GLOBAL", "LOAD_NAME")
    return {name: function.__globals__.get(name) for name in names}


def _callable(value: Any, seen: set[int]) -> Content:
    if isinstance(value, FunctionType):
        return _function(value, None, seen)
    if isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
        return _function(value.__func__, type(value.__self__), seen)
    if isinstance(value, partial):
        arguments = [_value(part, seen) for part in (value.args, value.keywords)]
        return ["partial", _callable(value.func, seen), arguments]
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:  # functools.lru_cache
        return [type(value).__qualname__, _callable(wrapped, seen)]
    if isinstance(call := type(value).__call__, FunctionType):
        return ["object", _function(call, type(value), seen)]
    return ["opaque", getattr(value, "__qualname__", type(value).__qualname__)]


def _function(function: FunctionType, owner: type | None, seen: set[int]) -> Content:
    """`owner`: the class of the object that it is a method of."""
    if id(function) in seen:
        return ["seen", function.__name__]
    seen.add(id(function))
    code = function.__code__
    outside = {n: function.__globals__.get(n) for n in _names(code, "LOAD_GLOBAL")}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        outside[name] = _content(cell)
    for name in _names(code, "STORE_GLOBAL", "STORE_DEREF"):  # a counter is no part of what it does
        outside.pop(name, None)
    methods = {n: getattr(owner, n, None) for n in _names(code, "LOAD_ATTR", "LOAD_METHOD")}
    return [
        _code(code),
        [_constant(value, seen) for value in function.__defaults__ or ()],
        _constants(function.__kwdefaults__ or {}, seen),
        _constants({n: v for n, v in outside.items() if _is_own(v, function)}, seen),
        [
            [name, _function(method, owner, seen)]
            for name, method in sorted(methods.items())
            if isinstance(method, FunctionType)
        ],
    ]


def _is_own(value: Any, function: FunctionType) -> bool:
    """Not a function of another module, which belongs to a library."""
    home = getattr(unwrap(value), "__globals__", None) if callable(value) else None
    return home is None or home is unwrap(function).__globals__


def _constants(values: Mapping[str, Any], seen: set[int]) -> Content:
    return [[name, _constant(value, seen)] for name, value in sorted(values.items())]


def _constant(value: Any, seen: set[int]) -> Content:
    """A value that a function finds; by its content only if that cannot change meanwhile."""
    if isinstance(value, (list, dict, set)):
        return [type(value).__qualname__]
    return _value(value, seen)


def _value(value: Any, seen: set[int]) -> Content:
    kind = type(value).__qualname__
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, range)):
        return [kind, repr(value)]
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, dict):
        pairs = [[_value(key, seen), _value(inner, seen)] for key, inner in value.items()]
        return [kind, sorted(pairs, key=canonical_json)]
    if isinstance(value, (set, frozenset)):  # its order changes from process to process
        return [kind, sorted((_value(inner, seen) for inner in value), key=canonical_json)]
    if isinstance(value, (tuple, list)):
        return [kind, [_value(inner, seen) for inner in value]]
    if isinstance(value, (FunctionType, MethodType, partial)):
        return _callable(value, seen)
    return [kind]


def _code(code: CodeType) -> Content:
    arguments = code.co_argcount + code.co_kwonlyargcount
    return [
        code.co_code.hex(),
        code.co_exceptiontable.hex(),
        list(code.co_names),
        list(code.co_varnames[:arguments]),
        list(code.co_freevars),
        [_value(constant, set()) for constant in code.co_consts],
    ]


def _names(code: CodeType, *operations: str) -> set[str]:
    """What the operations act on, here and in the functions within."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in operations}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return found.union(*(_names(constant, *operations) for constant in inner))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
