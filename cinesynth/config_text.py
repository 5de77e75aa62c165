"""Configuration as text: YAML files and `key=value` overrides, read as the fields of a model want them.

A plain scalar stands for a number or a truth value only where the field takes one. So `name: 42`, `prompt: yes` and
`salt: 007` are text as they were written, and so is `${...}`: nothing is replaced in it.
"""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel

from cinesynth.errors import ConfigError

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_INTEGER = re.compile(r"[-+]?(0x[0-9a-fA-F]+|[0-9][0-9_]*)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$")
_NULL = ("~", "null")
_NOT_FINITE = re.compile(r"(?P<sign>[-+]?)\.(?P<what>inf|nan)$", re.IGNORECASE)


@dataclass(frozen=True)
class Scalar:
    """A plain scalar that may be meant as a number or truth value: how it was written, and what it would be."""

    text: str
    value: bool | int | float


class _Loader(yaml.SafeLoader):
    """YAML that keeps how plain scalars were written, and refuses a key that stands twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = str(loader.construct_scalar(node))
    return text if node.style else _plain(text)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
    found = loader.construct_mapping(node, deep=True)
    return {key.text if isinstance(key, Scalar) else str(key): value for key, value in found.items()}


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _plain(text: str) -> str | Scalar:
    lower = text.lower()
    if lower in _TRUE or lower in _FALSE:
        return Scalar(text, lower in _TRUE)
    if _INTEGER.match(text):
        return Scalar(text, int(text.replace("_", ""), 16 if "x" in lower else 10))
    if _FLOAT.match(text):
        return Scalar(text, float(text.replace("_", "")))
    if found := _NOT_FINITE.match(text):
        return Scalar(text, float(found["sign"] + found["what"]))
    return text


def read_values(cls: type[BaseModel], path: str | None, overrides: list[str]) -> dict[str, Any]:
    """Plain values for `cls` from a YAML file and overrides, not validated yet.

    Raises ConfigError for a file that is missing or damaged, and for an override that cannot be placed.
    """
    values: Any = {}
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(
                f"--config {path!r} does not exist; the shipped ones are under jobs/configs/ and serve/config/"
            )
        values = _parse(Path(path).read_bytes(), path)
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected keys and values at the top level")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value (e.g. optimizer.lr=1e-4)")
        parts = [part for part in re.split(r"[.\[\]]", key) if part]
        _place(values, parts, text, cls, override)
    return _settled(values, cls)


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        raise ConfigError(f"{where}: {' '.join(str(e).split())}") from e


# --- overrides -----------------------------------------------------------------------------------------------


def _place(values: Any, parts: list[str], text: str, annotation: Any, override: str) -> None:
    """Put the value of an override where its key says; mappings are merged (an empty one clears what
    is there), everything else is replaced."""
    here = values
    for depth, part in enumerate(parts):
        within, annotation, key, rest = annotation, _field(annotation, part), part, parts[depth:]
        if isinstance(here, dict) and _names_a_value(within, annotation, here.get(part)):
            key, rest = ".".join(rest), rest[:1]  # a name with dots, such as that of an arm or a label
        place: Any = _list_place(here, key, override) if isinstance(here, list) else key
        if len(rest) == 1:
            found = _override_value(text, annotation, override)
            before = here[place] if isinstance(here, list) else here.get(place)
            here[place] = _merged(before, found)
            return
        if isinstance(here, dict) and here.get(key) is None:
            if _is_list(annotation):
                raise ConfigError(f"override {override!r}: {key} has no items; give the whole list, {key}=[...]")
            here[key] = {}
        here = here[place]
        if not isinstance(here, dict | list):
            raise ConfigError(f"override {override!r}: {'.'.join(parts[: depth + 1])} is one value and holds no keys")


def _names_a_value(within: Any, annotation: Any, there: Any) -> bool:
    """Whether what is left of a key is one name: of a scalar, or in a mapping of text or lists of it."""
    if _is_scalar(annotation):
        return True
    return (
        _is_mapping(within) and _takes_text(annotation) and model_in(annotation) is None and not isinstance(there, list)
    )


def _merged(before: Any, found: Any) -> Any:
    if not (isinstance(before, dict) and isinstance(found, dict) and found):
        return found
    return before | {key: _merged(before.get(key), value) for key, value in found.items()}


def _list_place(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override {override!r}: there is no item {key!r} in a list of {len(items)} (from 0)")
    return int(key)


def _override_value(text: str, annotation: Any, override: str) -> Any:
    """The value of an override: for a field of text alone it is text, whatever YAML would make of it but null."""
    if not _takes_text(annotation):
        return _parse(text, f"override {override!r}")
    text = text.strip()
    if text.lower() in _NULL:
        return None
    if not _is_text(annotation):
        found = _parse(text, f"override {override!r}")
        return text if found is None else found  # text that YAML takes for a comment
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    return value if text[:1] in ("'", '"') and isinstance(value, str) else text


# --- what a field takes --------------------------------------------------------------------------------------


def kinds_of(annotation: Any) -> list[Any]:
    """The alternatives of a field's type, with `Annotated` and unions taken apart."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return kinds_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for argument in typing.get_args(annotation) for kind in kinds_of(argument)]
    return [annotation]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, itself or as the items of a list or mapping; None where it holds none."""
    for kind in kinds_of(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        if typing.get_origin(kind) in (list, dict, tuple):
            for argument in typing.get_args(kind):
                if (found := model_in(argument)) is not None:
                    return found
    return None


def _is_list(annotation: Any) -> bool:
    """Whether a field holds a list."""
    return any(typing.get_origin(kind) in (list, tuple) for kind in kinds_of(annotation))


def _is_mapping(annotation: Any) -> bool:
    """Whether a field holds names of its user's own."""
    return any(typing.get_origin(kind) is dict for kind in kinds_of(annotation))


def _takes_text(annotation: Any) -> bool:
    """Whether a field takes text, and so no plain scalar as a number or a truth value."""
    kinds = kinds_of(annotation)
    return any(_is_text(kind) for kind in kinds) and not any(
        kind in (int, float, bool) or (typing.get_origin(kind) is Literal and not _is_text(kind)) for kind in kinds
    )


def _is_text(annotation: Any) -> bool:
    """Whether a field takes text alone."""
    kinds = [kind for kind in kinds_of(annotation) if kind is not type(None)]
    return bool(kinds) and all(
        kind is str or (typing.get_origin(kind) is Literal and all(isinstance(v, str) for v in typing.get_args(kind)))
        for kind in kinds
    )


def _is_scalar(annotation: Any) -> bool:
    return annotation is not None and all(
        kind in (str, int, float, bool, type(None)) or typing.get_origin(kind) is Literal
        for kind in kinds_of(annotation)
    )


def _field(annotation: Any, part: str) -> Any:
    """The type of what `part` names inside a field: a model's field, a mapping's value or a list's item."""
    for kind in kinds_of(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            field = kind.model_fields[part]
            return field.annotation
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is dict:
            return arguments[1]
        if origin is list:
            return arguments[0]
        if origin is tuple and part.isdigit():
            return arguments[min(int(part), len(arguments) - 1)]
    return None


def _settled(value: Any, annotation: Any) -> Any:
    """The value with every plain scalar as text or as a number, by what the field takes."""
    if isinstance(value, Scalar):
        return value.text if _takes_text(annotation) else value.value
    if isinstance(value, dict):
        return {key: _settled(item, _field(annotation, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_settled(item, _field(annotation, str(place))) for place, item in enumerate(value)]
    return value
