"""What can be configured, as people read it: the fields of a model with type, default and meaning, by group."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cinesynth.config_text import kinds_of, model_in
from cinesynth.settings import is_identity

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class FieldText:
    """One field: its key inside its group, what it takes, its default, its meaning, and whether it is identity."""

    key: str
    takes: str
    default: str
    meaning: str
    identity: bool


@dataclass(frozen=True)
class Group:
    """Fields that stand together: those of a job itself (key ''), or of one of its groups."""

    key: str
    meaning: str
    fields: list[FieldText]


def groups_of(cls: type[BaseModel], key: str = "", identity: bool = True) -> Iterator[Group]:
    """The groups of a configuration in order of declaration, its own fields first.

    Args:
        cls: the model.
        key: of the group inside the configuration.
        identity: whether the group is; of a runtime group no field is.
    """
    own, below = [], []
    for name, field in cls.model_fields.items():
        inner = model_in(field.annotation)
        counts = identity and is_identity(field)
        # A group of one model is told by its fields; a list of models, or text in its place, by a field and a group.
        if inner is None or not _is_only_model(field.annotation):
            own.append(_field_text(name, field, counts))
        if inner is not None:
            place = f"{key}.{name}".lstrip(".") + ("" if _is_model(field.annotation) else _items(field.annotation))
            below += list(groups_of(inner, place, counts))
    yield Group(key, _first_paragraph(cls), sorted(own, key=lambda field: field.default != ""))  # the required first
    yield from below


def help_text(cls: type[BaseModel]) -> str:
    """The fields of a job for its `--help`, one a line."""
    lines = []
    for group in groups_of(cls):
        lines += ["", f"{group.key}: {group.meaning}" if group.key else "fields:"]
        for field in group.fields:
            default = f" (default {field.default})" if field.default else " (required)"
            lines.append(f"  {field.key}: {field.takes}{default}" + (f"; {field.meaning}" if field.meaning else ""))
    return "\n".join(lines[1:])


def markdown(cls: type[BaseModel]) -> str:
    """The fields of a configuration as Markdown tables, one a group."""
    parts = []
    for group in groups_of(cls):
        rows = [
            f"| `{field.key}`{'' if field.identity else ' ·'} | {_cell(field.takes)} | "
            f"{_cell(f'`{field.default}`') if field.default else 'required'} | {_cell(field.meaning)} |"
            for field in group.fields
        ]
        if rows:
            head = [f"**`{group.key}`**: {group.meaning}", ""] if group.key else []
            parts.append("\n".join([*head, "| field | takes | default | |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _field_text(name: str, field: FieldInfo, identity: bool) -> FieldText:
    takes = _takes(field.annotation, [*field.metadata])
    default = "" if field.is_required() else _shown(field.get_default(call_default_factory=True))
    return FieldText(name, takes, default, field.description or "", identity)


def _takes(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _takes(arguments[0], [*arguments[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_takes(argument, metadata if argument is not type(None) else []) for argument in arguments)
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        item = "groups" if _is_model(arguments[0]) else _takes(arguments[0], [])
        return f"list of ({item})" if " or " in item else f"list of {item}"
    if origin is tuple:
        return f"[{', '.join(_takes(argument, []) for argument in arguments)}]"
    if origin is dict:
        return f"{_takes(arguments[0], [])} to {_takes(arguments[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a group"
    return " ".join([_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))), *_bounds(metadata)])


def _bounds(metadata: list[Any]) -> list[str]:
    found: dict[str, str] = {}
    for item in metadata:
        for part in [item, *getattr(item, "metadata", [])]:
            found |= {
                sign: f"{sign} {getattr(part, name)}"
                for name, sign in _BOUNDS.items()
                if getattr(part, name, None) is not None
            }
    return list(found.values())


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return "{}" if value == {} else str(value)


def _is_model(annotation: Any) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds_of(annotation))


def _is_only_model(annotation: Any) -> bool:
    return _is_model(annotation) and all(
        kind is type(None) or (isinstance(kind, type) and issubclass(kind, BaseModel)) for kind in kinds_of(annotation)
    )


def _items(annotation: Any) -> str:
    return ".NAME" if any(typing.get_origin(kind) is dict for kind in kinds_of(annotation)) else ".N"


def _first_paragraph(cls: type[BaseModel]) -> str:
    text = (cls.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
