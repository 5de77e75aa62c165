"""How configuration works: immutable pydantic models, read from YAML with `key=value` overrides.

Every field is *identity* (it changes the result) or *runtime* (workers, strategy, resources, cadence,
logging: declared with `runtime(...)`). The same run name with another identity is refused; runtime fields
may change at any resume.
"""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cinesynth.errors import ConfigError

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,79}$"


def runtime(default: Any = ..., **kwargs: Any) -> Any:
    """A field that may change when a run is continued: it does not change the result."""
    return Field(default, json_schema_extra={"runtime": True}, **kwargs)


def _window_frames(value: int) -> int:
    if value < 5 or (value - 1) % 4:
        raise ValueError("must be 4n+1 and at least 5 (5, 9, 13, 17, 33, 81, ...): the VAE codes 4 frames at a time")
    return value


def _side(value: int) -> int:
    if value <= 0 or value % 16:
        raise ValueError("must be a positive multiple of 16 (VAE stride 8 times patch size 2)")
    return value


WindowFrames = Annotated[int, AfterValidator(_window_frames)]
Side = Annotated[int, AfterValidator(_side)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all configuration: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, as plain JSON values."""
        return _identity(self)

    def check_inputs(self) -> None:
        """Raise ConfigError for an input that is missing on this machine; needs no Ray."""


Config = TypeVar("Config", bound=Settings)


def load_config(cls: type[Config], path: str | None = None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `a.b=value` overrides and validate.

    Raises ConfigError naming every bad key, its value and what is allowed. Inputs on disk are checked
    separately, by `check_inputs`.
    """
    try:
        merged: Any = OmegaConf.create({})
        if path is not None:
            if not Path(path).is_file():
                raise ConfigError(
                    f"--config {path!r} does not exist; the shipped ones are under jobs/configs/ and serve/config/"
                )
            loaded = OmegaConf.load(path)
            if not OmegaConf.is_dict(loaded):
                raise ConfigError(f"{path}: expected keys and values at the top level")
            merged = OmegaConf.merge(merged, loaded)
        for override in overrides or []:
            key, separator, value = override.partition("=")
            if not separator:
                raise ConfigError(f"override {override!r} is not of the form key=value (e.g. optimizer.lr=1e-4)")
            OmegaConf.update(merged, key, OmegaConf.from_dotlist([f"value={value}"])["value"], merge=True)
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as e:
        raise ConfigError(f"{path or 'overrides'}: {e}") from e
    return parse_config(cls, values, where=path or "configuration")


def parse_config(cls: type[Config], values: Any, where: str = "configuration") -> Config:
    """Validate plain values as `cls`; raises ConfigError with one line per bad key."""
    try:
        return cls.model_validate(values)
    except ValidationError as e:
        lines = [_explain(cls, error) for error in e.errors()]
        head = f"{where}: {lines[0]}" if len(lines) == 1 else f"{where}: {len(lines)} problems: " + "; ".join(lines)
        raise ConfigError(head) from None


def _explain(cls: type[BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "extra_forbidden":
        known = _fields_at(cls, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed here: {', '.join(sorted(known))}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: is required"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    shown = "" if isinstance(value, dict | BaseModel) else f" = {value!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _fields_at(cls: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = cls
    for part in location:
        if isinstance(part, str) and part in getattr(current, "model_fields", {}):
            current = _model_in(current.model_fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, dict, tuple, typing.Union, types.UnionType, Annotated):
        for argument in typing.get_args(annotation):
            if (found := _model_in(argument)) is not None:
                return found
    return None


def _identity(settings: BaseModel) -> dict[str, Any]:
    plain = settings.model_dump(mode="json")
    result: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("runtime"):
            continue
        value = getattr(settings, name)
        result[name] = _identity(value) if isinstance(value, BaseModel) else plain[name]
    return result


def to_yaml(settings: BaseModel) -> str:
    """The resolved configuration as YAML, in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def differences(recorded: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, as 'key: recorded X, given Y'."""
    lines: list[str] = []
    for key in sorted({*recorded, *given}):
        a, b = recorded.get(key), given.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: recorded {a!r}, given {b!r}")
    return lines
