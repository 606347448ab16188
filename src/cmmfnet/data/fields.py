"""Types and allowed ranges of recipe fields: a dataclass checks itself, or is built from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cmmfnet.files.errors import UserError


class RecipeError(UserError):
    """A recipe that cannot be trained; the message names the field, its value and what was
    expected."""


@dataclass(frozen=True)
class Range:
    """``low`` to ``high``; ``above`` and ``below`` leave the ends out. For numbers, and for each
    number of a list."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {self.low:,}"
        return f"{low} {'to below' if self.below else 'to'} {self.high:,}"


def bounded(default: Any, low: float, high: float, **ends: bool) -> Any:
    """A dataclass field with a default and a :class:`Range`."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, **ends)})


def check(values: Any, of: str = "") -> None:
    """Raises :class:`RecipeError` for the first field of a dataclass whose value has another type
    than its annotation, or lies outside of its range. ``of``: what messages add to the name."""
    hints = typing.get_type_hints(type(values))
    for field in dataclasses.fields(values):
        value, within = getattr(values, field.name), field.metadata.get("range")
        if not _fits(value, hints[field.name], within):
            raise RecipeError(
                f"{field.name}{of} is {_shown(value)}; expected "
                f"{_described(hints[field.name], within)}"
            )


def build(kind: type, values: Any, where: str = "") -> Any:
    """A dataclass of the plain values that YAML has: lists become tuples, and mappings become
    dataclasses, where the annotations want them. Raises :class:`RecipeError`."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where or 'the recipe'} is {_shown(values)}; expected keys and values")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    inside = f" of {where}" if where else ""
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise RecipeError(f"unknown key {_shown(key)}{inside}; {hint}")
    for field in fields.values():
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if no_default and field.name not in values:
            raise RecipeError(f"{field.name}{inside} is missing")
    hints = typing.get_type_hints(kind)
    return kind(
        **{key: _converted(value, hints[key], key + inside) for key, value in values.items()}
    )


def _converted(value: Any, hint: Any, where: str) -> Any:
    for option in _options(hint):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return build(option, value, where)
        if isinstance(value, list) and typing.get_origin(option) is tuple:
            return tuple(value)
        if isinstance(value, list) and typing.get_origin(option) is list:
            kind = typing.get_args(option)[0]
            return [_converted(v, kind, f"{where}[{i}]") for i, v in enumerate(value)]
    return value


def _options(hint: Any) -> tuple:
    """The alternatives of ``A | B``."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any, within: Range | None) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option, within) for option in typing.get_args(hint))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str | None) and value in inner
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return len(kinds) == len(value) and all(
            _fits(v, kind, within) for v, kind in zip(value, kinds, strict=True)
        )
    if origin is list:
        return isinstance(value, list) and all(_fits(v, inner[0], within) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, inner[0], None) and _fits(v, inner[1], within) for k, v in value.items()
        )
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
            return False
        finite = isinstance(value, int) or math.isfinite(value)
        return finite and (within is None or value in within)
    return isinstance(value, hint)


def _described(hint: Any, within: Range | None) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_described(option, within) for option in typing.get_args(hint))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join('null' if word is None else word for word in inner)}"
    if origin in (tuple, list):
        count = "" if origin is list or inner[-1] is ... else f"{len(inner)} values, each "
        return f"a list of {count}{_described(inner[0], within)}"
    if origin is dict:
        return f"keys with {_described(inner[1], within)} each"
    if dataclasses.is_dataclass(hint):
        return "keys and values"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false",
             dict: "keys and values", types.NoneType: "null"}  # fmt: skip
    limits = f" {within}" if within and hint in (int, float) else ""
    return words[hint] + limits


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
