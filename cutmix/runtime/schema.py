"""JSON objects checked against the fields of a dataclass. No torch here."""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cutmix.errors import InputError

_HALF_PAIR = re.compile("[\ud800-\udc7f\udd00-\udfff]")

Check = Callable[[Any], Any]  # return the value to store, or raise TypeError


def parse_json(text: bytes, where: str) -> Any:
    """Return the value of a JSON text in UTF-8.

    Args:
        text: The bytes.
        where: Name of the file, and of the line if there are several.

    Raises:
        InputError: If the text is not UTF-8 or not JSON, is nested too deeply, or holds NaN, infinity or half a
            surrogate pair other than Python's for a byte of a file name that is not UTF-8.
    """
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant)
        if b"\\ud" not in text.lower() or not _HALF_PAIR.search(json.dumps(value, ensure_ascii=False)):
            return value
        reason = "has half a surrogate pair in a string"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        reason = f"is not JSON in UTF-8 ({error})"
    raise InputError(f"{where} {reason}; expected JSON") from None


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a text; raises as ``parse_json``, and for any other JSON value."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InputError(f"{where} is {kind_of(value)}; expected one JSON object")
    return value


def check_fields(kind: type, values: Mapping[str, Any], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return JSON values as arguments of a dataclass: lists become tuples, whole numbers floats where a float is meant.

    Args:
        kind: A dataclass whose fields are numbers, texts, booleans, ``Literal``, None, tuples of these, or a mapping.
        values: The JSON object.
        where: Name of the file, and of the line if there are several.
        required: Fields that must be there.

    Raises:
        InputError: If a field is missing, unknown or of another type.
    """
    types = _checks(kind)
    missing = [name for name in required if name not in values]
    if missing:
        raise InputError(f"{where} has no field {missing[0]!r}; expected {_described(kind, missing[0])}")
    found = {}
    for name, value in values.items():
        if name not in types:
            raise InputError(f"{where} has an unknown field {name!r}; expected the fields of {kind.__name__}")
        try:
            found[name] = types[name](value)
        except TypeError:
            raise InputError(f"{where}: {name} is {kind_of(value)}; expected {_described(kind, name)}") from None
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


@cache
def _checks(kind: type) -> dict[str, Check]:
    return {name: _check(hint) for name, hint in get_type_hints(kind).items()}


def _check(hint: Any) -> Check:
    """Return a function that converts a JSON value to a type, or raises TypeError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_of([_check(one) for one in arguments])
    if origin is Literal:
        return lambda value: value if isinstance(value, str) and value in arguments else _refuse()
    if origin is tuple:
        return _tuple([_check(one) for one in arguments if one is not Ellipsis], ragged=Ellipsis in arguments)
    if hint is float:
        return _float
    if hint is NoneType:
        return lambda value: value if value is None else _refuse()
    wanted = dict if origin is not None else hint  # Mapping[str, Any]
    return lambda value: value if type(value) is wanted else _refuse()


def _first_of(checks: list[Check]) -> Check:
    def convert(value: Any) -> Any:
        for check in checks:
            try:
                return check(value)
            except TypeError:
                continue
        return _refuse()

    return convert


def _tuple(checks: list[Check], *, ragged: bool) -> Check:
    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not (ragged or len(value) == len(checks)):
            _refuse()
        return tuple(check(one) for check, one in zip(checks * len(value) if ragged else checks, value, strict=True))

    return convert


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        _refuse()
    try:
        number = float(value)
    except OverflowError:
        return _refuse()
    return number if math.isfinite(number) else _refuse()


def _refuse() -> Any:
    raise TypeError


def _described(kind: type, name: str) -> str:
    return _words(get_type_hints(kind)[name])


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list of {_words(arguments[0]).removeprefix('a ')}s"
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    return words.get(hint, "an object")


def kind_of(value: Any) -> str:
    """Return a JSON value in words, short enough for a sentence."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
