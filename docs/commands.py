"""The fenced blocks of the documentation, and whether their commands hold: `python -m docs.commands`.

Every fence says what it is. A block of shell commands has a tag in its info string: `sh run` (a test runs it),
`sh check` (each command is parsed by the program that it calls, and a job's configuration is loaded) or
`sh show: REASON` (neither). `yaml check: MODULE` is a configuration of that job (`serve deploy`: of that command), and
`yaml file: NAME` one that the page's commands name.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cinesynth.errors import ConfigError
from cinesynth.settings import load_config
from docs import programs
from docs.shell import ShellError, Statement, statements

REPOSITORY = Path(__file__).resolve().parent.parent
SHELLS = ("sh", "bash", "shell", "console", "zsh")
RUN, CHECK, SHOW = "run", "check", "show"
DEPLOYMENT = "serve deploy"
_FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*(.*?)\s*$")
_COMMAND = re.compile(r"(\$ )?(python3? -|ray |serve |curl |make [a-z]|pip3? install|\.venv/bin/|kubectl |sbatch )")
"""What a line of a block without a tag is not to begin with."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the file that it stands in.
        line: of its opening fence, from 1.
        language: the first word of the info string.
        tag: of shell commands `run`, `check` or `show`; of YAML `check` or `file`; else empty.
        detail: what follows the tag's colon: a reason, a module, a file's name.
        lines: its text.
    """

    page: Path
    line: int
    language: str
    tag: str
    detail: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The block's text, with a line feed at its end."""
        return "\n".join(self.lines) + "\n"


@dataclass
class Problem:
    """Something on a page that does not hold."""

    page: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}: {self.message}"


@dataclass
class _State:
    """What the commands of a page left behind: the variables that they set."""

    variables: dict[str, str] = field(default_factory=lambda: {"PWD": "/work", "HOME": "/home/me"})


def pages() -> list[Path]:
    """All pages of the documentation."""
    folders = (REPOSITORY.glob("docs/*.md"), REPOSITORY.glob("cluster/**/*.md"))
    return [
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *(page for found in folders for page in sorted(found)),
    ]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    opened: tuple[int, str, str] | None = None
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened = (number, fence[1], fence[2])
        elif opened is not None and fence and fence[1] == opened[1] and not fence[2]:
            found.append(_block(page, opened[0], opened[2], lines[opened[0] : number - 1]))
            opened = None
    if opened is not None:
        raise ValueError(f"{page.name}:{opened[0]}: this fence is not closed")
    return found


def _block(page: Path, line: int, info: str, lines: Sequence[str]) -> Block:
    language, _, rest = info.partition(" ")
    tag, _, detail = rest.partition(":")
    return Block(page, line, language, tag.strip(), detail.strip(), tuple(lines))


def problems(page: Path) -> list[Problem]:
    """What does not hold on a page: its tags, its commands and its configurations."""
    found = list(_untagged(page))
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        state = _State()
        for block in blocks(page):
            found += _of_block(block, state, files)
    return sorted(found, key=lambda problem: problem.line)


def _untagged(page: Path) -> Iterator[Problem]:
    """Commands outside of fences: indented blocks have no info string."""
    inside, before = False, ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside and not before.strip() and line.startswith("    ") and _COMMAND.match(line.strip()):
            yield Problem(page, number, "commands stand in a fenced block with a tag, such as `sh check`")
        before = line


def _of_block(block: Block, state: _State, files: Path) -> Iterator[Problem]:
    if block.language in SHELLS:
        yield from _of_shell(block, state, files)
    elif block.language == "yaml":
        yield from _of_yaml(block, files)
    elif not block.language:
        yield Problem(block.page, block.line, "this fence does not say what it is (sh, yaml, python, text, ...)")
    elif block.language != "python":
        for offset, line in enumerate(block.lines, 1):
            if _COMMAND.match(line):
                yield Problem(block.page, block.line + offset, f"a command in a block of {block.language}")


def _of_shell(block: Block, state: _State, files: Path) -> Iterator[Problem]:
    if block.language != "sh" or block.tag not in (RUN, CHECK, SHOW):
        yield Problem(block.page, block.line, "a block of commands is `sh run`, `sh check` or `sh show: reason`")
        return
    if block.tag == SHOW:
        if not block.detail:
            yield Problem(block.page, block.line, "`sh show` gives its reason: `sh show: reason`")
        return
    try:
        for statement in statements(block.lines, state.variables):
            for message in _of_statement(statement, state, files):
                yield Problem(block.page, block.line + statement.line, message)
    except ShellError as e:
        yield Problem(block.page, block.line + e.line, str(e))


def _of_statement(statement: Statement, state: _State, files: Path) -> Iterator[str]:
    state.variables |= statement.variables
    for words in statement.commands:
        for message in programs.problems(words, REPOSITORY, files):
            yield f"`{' '.join(words)}`: {message}"


def _of_yaml(block: Block, files: Path) -> Iterator[Problem]:
    try:
        values = yaml.safe_load(block.text)
        if block.tag == "file":
            (files / block.detail).write_text(block.text)
        elif block.tag == CHECK and block.detail == DEPLOYMENT:
            yield from (Problem(block.page, block.line, told) for told in programs.deployment_problems(values))
        elif block.tag == CHECK:
            path = files / "configuration.yaml"
            path.write_text(block.text)
            load_config(programs.CONFIGURATIONS[block.detail], str(path), [])
    except (ConfigError, yaml.YAMLError) as e:
        yield Problem(block.page, block.line, " ".join(str(e).split()))
    except KeyError:
        yield Problem(block.page, block.line, f"no job is called {block.detail!r}")


def main() -> None:
    """Check all pages. Exit code 1: something does not hold."""
    found = [problem for page in pages() for problem in problems(page)]
    for problem in found:
        print(problem)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
