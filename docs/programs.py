"""Whether a command of the documentation would be understood: each program's own parser is asked.

Nothing is run. A module's `ArgumentParser` reads the words and is stopped there; of a job, the configuration is loaded
with its overrides; `ray` and `serve` are asked through their click commands, and what `ray job submit` starts in turn.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cinesynth.errors import ConfigError
from cinesynth.settings import load_config, parse_config
from docs.configuration import JOBS as CONFIGURATIONS

OTHERS = frozenset(
    (
        *(".", "aws", "cat", "cd", "cp", "curl", "docker", "eval", "gcloud", "grafana-server", "gsutil", "helm"),
        *("kubectl", "ls", "mkdir", "optuna-dashboard", "pip", "prometheus", "sbatch", "scancel", "sleep", "squeue"),
        *("tee", "tensorboard", "test"),
    )
)
"""Programs that are asked nothing; of their words, those that name files of the repository have to be there."""
_PYTHON = re.compile(r"(.*/)?python3?$")
_ROUTE = re.compile(r"https?://[^/]+(/(?:v1|openapi|healthz|readyz|studio|review)[^?#]*)")


class _Parsed(BaseException):
    """Raised in place of what a program does once its command line is read."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = arguments


def problems(words: Sequence[str], repository: Path, files: Path) -> Iterator[str]:
    """What is wrong with one command.

    Args:
        words: of the command, the program first.
        repository: the folder that it is given in.
        files: a folder with files that the page tells its reader to write.
    """
    program, arguments = words[0], list(words[1:])
    yield from (f"{word} does not exist" for word in arguments if _is_missing(word, repository))
    if _PYTHON.match(program):
        yield from _of_python(arguments, repository, files)
    elif program in ("ray", "serve"):
        yield from _of_ray(program, arguments, repository, files)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (repository / "Makefile").read_text(), re.MULTILINE)
        yield from (f"make has no target {word!r}" for word in arguments if "=" not in word and word not in targets)
    elif program == "curl":
        yield from (f"the service has no route {route}" for route in _routes(arguments) if not _is_served(route))
    elif program not in OTHERS and not program.startswith(".venv/bin/") and not (repository / program).is_file():
        yield f"{program!r} is not known here; is it misspelt? Else name it in docs/programs.py"


def _is_missing(word: str, repository: Path) -> bool:
    """Whether a word names a file below one of the repository's folders that is not there."""
    folder, slash, rest = word.partition("/")
    is_ours = slash and rest and re.fullmatch(r"[\w.-]+", folder) and (repository / folder / "__init__.py").is_file()
    named = re.fullmatch(r"[\w./-]+", word) is not None
    return bool(is_ours or (folder in ("docs", "tests") and slash)) and named and not (repository / word).exists()


def _of_python(arguments: list[str], repository: Path, files: Path) -> Iterator[str]:
    if arguments[:1] == ["-c"]:
        try:
            ast.parse(arguments[1])
        except SyntaxError as e:
            yield f"no Python: {e}"
    elif arguments[:1] == ["-m"] and len(arguments) > 1:
        yield from _of_module(arguments[1], arguments[2:], repository, files)
    else:
        yield "python is called as `python -m MODULE` or `python -c CODE`"


def _of_module(module: str, arguments: list[str], repository: Path, files: Path) -> Iterator[str]:
    if module in ("venv", "pytest", "pip"):
        return
    if module == "jobs.submit":
        yield from _of_submission(arguments, repository, files)
        return
    source = _source(module)
    if source is None:
        yield f"there is no module {module}"
        return
    if "argparse" not in source and "run_job" not in source:
        if arguments:
            yield f"{module} takes no arguments"
        return
    told = io.StringIO()
    try:
        with _as_command_line(module, arguments, repository), contextlib.redirect_stderr(told):
            runpy.run_module(module, run_name="__main__")
    except _Parsed as e:
        if module in CONFIGURATIONS and hasattr(e.arguments, "overrides"):
            yield from _of_configuration(module, e.arguments, repository, files)
    except SystemExit as e:
        said = told.getvalue().strip().splitlines() or [str(e.code)]
        yield said[-1]


def _of_configuration(module: str, given: argparse.Namespace, repository: Path, files: Path) -> Iterator[str]:
    path = given.config
    if path is not None:
        path = next((str(folder / path) for folder in (files, repository) if (folder / path).is_file()), path)
    try:
        load_config(CONFIGURATIONS[module], path, given.overrides)
    except ConfigError as e:
        yield str(e)


def _of_submission(arguments: list[str], repository: Path, files: Path) -> Iterator[str]:
    """What `jobs.submit` would refuse, and then what Ray or the job would."""
    from jobs.metadata import JOBS
    from jobs.submit import command_of

    place = next((place for place, word in enumerate(arguments) if word in JOBS), None)
    if place is None:
        yield f"jobs.submit is given no job; it is one of {', '.join(JOBS)}"
        return
    options = [word for word in arguments[:place] if word != "--print"]
    given = [str(files / word) if (files / word).is_file() else word for word in arguments[place + 1 :]]
    try:
        with _in_folder(repository):
            command = command_of(options, arguments[place], given, datetime.now(UTC))
    except (ConfigError, SystemExit) as e:
        yield str(e)
        return
    yield from _of_ray("ray", command[1:], repository, files)


def deployment_problems(values: Any) -> Iterator[str]:
    """What is wrong with a configuration of `serve deploy`, which itself passes over keys that it does not know."""
    from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    from serve.config import ServeConfig

    yield from _unknown(values, ServeDeploySchema, "")
    yield from _unknown(values.get("http_options", {}), HTTPOptionsSchema, "http_options.")
    for application in values.get("applications", []):
        yield from _unknown(application, ServeApplicationSchema, "applications.")
        module, _, attribute = application.get("import_path", "").partition(":")
        if _source(module) is None or not hasattr(importlib.import_module(module), attribute):
            yield f"import_path {module}:{attribute} does not exist"
        try:
            parse_config(ServeConfig, application.get("args", {}), "args")
        except ConfigError as e:
            yield str(e)
    try:
        ServeDeploySchema.model_validate(values)
    except ValueError as e:
        yield " ".join(str(e).split())


def _unknown(values: Any, schema: Any, prefix: str) -> Iterator[str]:
    yield from (f"{prefix}{key}: unknown key" for key in values if key not in schema.model_fields)


def _source(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
        if found is not None and found.submodule_search_locations is not None:
            found = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError:
        return None
    return Path(found.origin).read_text() if found is not None and found.origin else None


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _as_command_line(module: str, arguments: list[str], repository: Path) -> Iterator[None]:
    """The process as the module would find it; every parser raises `_Parsed` when it has read the words."""
    parsers = argparse.ArgumentParser
    kept = sys.argv, parsers.parse_args, parsers.parse_intermixed_args

    def stop_after(parse: Any) -> Any:
        def parsed(parser: argparse.ArgumentParser, words: Any = None, namespace: Any = None) -> Any:
            raise _Parsed(parse(parser, words, namespace))

        return parsed

    try:
        sys.argv = [module, *arguments]
        parsers.parse_args, parsers.parse_intermixed_args = stop_after(kept[1]), stop_after(kept[2])  # type: ignore
        with _in_folder(repository):
            yield
    finally:
        sys.argv = kept[0]
        parsers.parse_args, parsers.parse_intermixed_args = kept[1], kept[2]  # type: ignore


def _of_ray(program: str, arguments: list[str], repository: Path, files: Path) -> Iterator[str]:
    import click
    from ray.scripts.scripts import cli
    from ray.serve.scripts import cli as serve_cli

    command: Any = cli if program == "ray" else serve_cli
    context, rest = click.Context(command, info_name=program), list(arguments)
    try:
        while isinstance(command, click.Group):
            name, command, rest = command.resolve_command(context, rest)
        # Defaults, prompts and callbacks are the program's own; only the words are read.
        context = click.Context(command, parent=context, info_name=name)
        parsed, *_ = command.make_parser(context).parse_args(list(rest))
    except click.UsageError as e:
        yield e.format_message()
        return
    entrypoint = list(parsed.get("entrypoint") or ())
    if text := parsed.get("metadata_json"):
        yield from _of_metadata(str(text))
    if entrypoint:
        yield from (f"entry point: {message}" for message in problems(entrypoint, repository, files))


def _of_metadata(text: str) -> Iterator[str]:
    from docs.shell import FROM_COMMAND

    if text == FROM_COMMAND:
        return
    try:
        found = json.loads(text)
    except json.JSONDecodeError as e:
        yield f"--metadata-json {shlex.quote(text)} is no JSON: {e}"
        return
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        yield "--metadata-json is a mapping of texts to texts"


def _routes(arguments: Sequence[str]) -> list[str]:
    return [found[1] for word in arguments if (found := _ROUTE.match(word))]


def _is_served(route: str) -> bool:
    from serve import api, pages

    # In the schema are those that are served; the others say what to do in their place.
    routes = [route for route in api.router.routes if getattr(route, "include_in_schema", False)]
    known = {getattr(route, "path", "") for route in [*routes, *pages.router.routes]} | {"/openapi.json"}
    return any(re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), route) for path in known)
