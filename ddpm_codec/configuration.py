"""Configurations as JSON: frozen dataclasses of numbers, words, integer tuples and each other."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from ddpm_codec.errors import CheckpointError

Config = TypeVar("Config")


def parse(kind: type[Config], raw: object, path: Path) -> Config:
    """A configuration dataclass from JSON; fields of its default's type, or missing: the default.

    A field or a word that this version doesn't know is a CheckpointError: a newer version's meaning
    would be lost.
    """
    default, hints = kind(), get_type_hints(kind)
    names = [f.name for f in fields(cast(Any, kind))]
    if not isinstance(raw, dict) or not set(raw) <= set(names):
        raise CheckpointError(f"{path}: its {kind.__name__} has fields that this version lacks")
    values: dict[str, Any] = {}
    for name in raw:
        model, value = getattr(default, name), raw[name]
        if is_dataclass(model):
            value = parse(type(model), value, path)
        elif isinstance(model, tuple) and isinstance(value, list):
            value = tuple(value)
        integers = isinstance(value, tuple) and all(type(v) is int for v in value)
        bad = type(value) is not type(model) or (isinstance(model, tuple) and not integers)
        if bad or (get_origin(hints[name]) is Literal and value not in get_args(hints[name])):
            raise CheckpointError(f"{path}: {kind.__name__}.{name} is {value!r}")
        values[name] = value
    return kind(**values)


def unusual(config: Any) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults, nested."""
    default, found = type(config)(), {}
    for name in (f.name for f in fields(config)):
        value = getattr(config, name)
        if value != getattr(default, name):
            found[name] = unusual(value) if is_dataclass(value) else value
    return found
