"""How configuration works: immutable pydantic models, read from YAML with `key=value` overrides.

Every field is *identity* (it changes the result) or *runtime* (workers, strategy, resources, cadence,
logging, and where files lie: declared with `runtime(...)`). The same run name with another identity is refused;
runtime fields may change at any resume. The content of a file counts by its hash, as an input of the run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from cinesynth.config_text import model_in, read_values
from cinesynth.errors import ConfigError
from cinesynth.storage import without_credentials
from cinesynth.wan.family import FAMILIES

_CREDENTIALS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]*@")
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,79}$"


def runtime(default: Any = ..., **kwargs: Any) -> Any:
    """A field that may change when a run is continued: it does not change the result."""
    return Field(default, json_schema_extra={"runtime": True}, **kwargs)


def locations(default: Any = ..., **kwargs: Any) -> Any:
    """A mapping of names to folders: the names, in their order, are identity, the folders are runtime."""
    return Field(default, json_schema_extra={"runtime": "values"}, **kwargs)


# A configuration is read before its model is found: here it may ask for what any family makes, and each job checks it
# against its own model.


def _window_frames(value: int) -> int:
    if not any(family.takes_frames(value) for family in FAMILIES.values()):
        rules = {f"{f.frame_rule} and at least {f.least_frames}": f.temporal_stride for f in FAMILIES.values()}
        why = " or ".join(f"{stride} frames at a time" for stride in rules.values())
        raise ValueError(f"must be {' or '.join(rules)} (such as 33): the VAE codes {why}")
    return value


def _side(value: int) -> int:
    if not any(family.takes_side(value) for family in FAMILIES.values()):
        raise ValueError(f"must be a positive multiple of {side_steps()} (the VAE's stride times the patch size)")
    return value


def _whole_above_one(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("above 1 it must be a whole number: Ray shares out parts of one GPU only")
    return value


def side_steps() -> str:
    """What heights and widths are multiples of, as messages say it."""
    return " or ".join(str(step) for step in sorted({family.side_step for family in FAMILIES.values()}))


WindowFrames = Annotated[int, AfterValidator(_window_frames)]
Side = Annotated[int, AfterValidator(_side)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Gpus = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_whole_above_one)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Retired:
    """A field that this version has no more.

    Attributes:
        kept: the value that stands for what this version does; a recorded configuration may hold it.
        instead: what to do with any other value.
    """

    kept: Any
    instead: str


class Settings(BaseModel):
    """Base of all configuration: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)

    retired: ClassVar[Mapping[str, Retired]] = {}
    """Name to field that was here before."""

    @model_validator(mode="before")
    @classmethod
    def _without_retired(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for name, field in cls.retired.items():
            if name in values and values[name] != field.kept:
                raise ValueError(f"{name} = {values[name]!r}: this key is no more; {field.instead}")
        return {name: value for name, value in values.items() if name not in cls.retired}

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, as plain JSON values."""
        return _identity(self)

    def counts(self, field: str) -> bool:
        """Whether a field, or a part of it, is identity. A class whose other fields decide that overrides it."""
        return is_identity(type(self).model_fields[field])

    def check_inputs(self) -> None:
        """Raise ConfigError for an input that is missing on this machine; needs no Ray."""


Config = TypeVar("Config", bound=Settings)


def load_config(cls: type[Config], path: str | None = None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `a.b=value` overrides and validate.

    Raises ConfigError naming every bad key, its value and what is allowed. Inputs on disk are checked
    separately, by `check_inputs`.
    """
    values = read_values(cls, path, overrides or [])
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
            current = model_in(current.model_fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _identity(value: Any) -> Any:
    """A value without the runtime fields of the models in it, as plain JSON values."""
    if isinstance(value, Settings):
        fields = type(value).model_fields
        return {name: _field_identity(fields[name], getattr(value, name)) for name in fields if value.counts(name)}
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return value


def _field_identity(field: FieldInfo, value: Any) -> Any:
    return list(value) if _runtime_of(field) == "values" else _identity(value)


def _runtime_of(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    return extra.get("runtime", False) if isinstance(extra, dict) else False


def is_identity(field: FieldInfo) -> bool:
    """Whether a field, or a part of it, is identity."""
    return _runtime_of(field) is not True


def to_yaml(settings: BaseModel) -> str:
    """The resolved configuration as YAML, in declaration order, without the credentials that its locations hold."""
    return yaml.safe_dump(_without_credentials(settings.model_dump(mode="json")), sort_keys=False)


def _without_credentials(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_credentials(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_credentials(item) for item in value]
    return without_credentials(value) if isinstance(value, str) and _CREDENTIALS.match(value) else value


def differences(recorded: Mapping[str, Any], given: Settings, prefix: str = "") -> list[str]:
    """Dotted identity fields whose values differ, as 'key: recorded X, given Y'.

    Args:
        recorded: an identity as it was recorded, maybe by another version. A field that it lacks counts as its
            default, so the default of an identity field never changes. A field that is runtime by now, or is retired
            and has the value that stands for what is done now, is passed over.
        given: the settings to compare.
        prefix: of the keys.
    """
    fields = type(given).model_fields
    lines = [
        f"{prefix}{name}: recorded {recorded[name]!r}, which this version of cinesynth does not have"
        for name in sorted(recorded.keys() - fields.keys())
        if name not in given.retired or recorded[name] != given.retired[name].kept
    ]
    for name, field in fields.items():
        if not given.counts(name):
            continue
        value = getattr(given, name)
        if name in recorded:
            before = recorded[name]
        elif field.is_required():
            before = None
        else:
            before = _field_identity(field, field.get_default(call_default_factory=True))
        if _runtime_of(field) == "values" and isinstance(before, Mapping):  # recorded as a mapping, in no order
            lines += _differ(sorted(before), sorted(value), f"{prefix}{name}")
        else:
            lines += _differ(before, value, f"{prefix}{name}", _field_identity(field, value))
    return lines


def _differ(before: Any, value: Any, key: str, identity: Any = None) -> list[str]:
    """Differences between a recorded value and a given one, whose identity is `identity` where that differs."""
    identity = _identity(value) if identity is None else identity
    if isinstance(value, Settings) and isinstance(before, Mapping):
        return differences(before, value, f"{key}.")
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        return [
            line
            for name in sorted({*before, *value})
            for line in _differ(before.get(name), value.get(name), f"{key}.{name}")
        ]
    if isinstance(value, list | tuple) and isinstance(before, list) and len(value) == len(before):
        pairs = zip(before, value, strict=True)
        if any(isinstance(item, Settings) for item in value):
            return [line for place, pair in enumerate(pairs) for line in _differ(*pair, f"{key}.{place}")]
    return [] if before == identity else [f"{key}: recorded {before!r}, given {identity!r}"]
