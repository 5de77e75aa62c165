"""The part of the shell's language that the documentation uses, as words: enough to ask each program about them.

Variables are replaced as the shell does it, also in what it does not do: in single quotes they stay as they are, which
on a page is a mistake. What `$(...)` holds is a command of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

FROM_COMMAND = "OUTPUT"
"""What stands for the output of `$(...)`."""
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)$", re.DOTALL)
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
_SUBSTITUTION = re.compile(r"\$\(((?:[^()]|\([^()]*\))*)\)")
_OPERATOR = re.compile(r"[|&;()<>]+$")


class ShellError(ValueError):
    """Shell text that is not understood.

    Attributes:
        line: of the block, from 1.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Statement:
    """A line of commands, with those that continue it.

    Attributes:
        line: the first one, from 1.
        commands: each as words; those of a pipe or list one after another, those inside `$(...)` first.
        variables: set for what follows.
    """

    line: int
    commands: list[list[str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def statements(lines: Sequence[str], variables: Mapping[str, str]) -> Iterator[Statement]:
    """The statements of a block. `variables` are those that are set before it; it may grow while this is read."""
    known = dict(variables)
    waiting, first = "", 0
    for number, line in enumerate(lines, 1):
        first = first if waiting else number
        waiting += line
        if line.endswith("\\"):
            waiting = waiting[:-1]
            continue
        if not _is_whole(waiting):
            waiting += "\n"
            continue
        statement = _statement(waiting, first, known)
        known |= statement.variables
        if statement.commands or statement.variables:
            yield statement
        waiting = ""
    if waiting.strip():
        raise ShellError(first, "this command has no end: a quote is open, or its last line ends with a backslash")


def _is_whole(text: str) -> bool:
    try:
        _words(text)
    except ValueError:
        return False
    return True


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def _statement(text: str, line: int, known: Mapping[str, str]) -> Statement:
    statement = Statement(line)
    text = _expanded(text, line, known)
    while found := _SUBSTITUTION.search(text):
        statement.commands += _statement(found[1], line, known).commands
        text = text[: found.start()] + FROM_COMMAND + text[found.end() :]
    for command in _split(_words(text)):
        while command and (found := _ASSIGNMENT.match(command[0])):
            statement.variables[found[1]] = found[2]
            command.pop(0)
        if command[:1] == ["export"]:
            statement.variables |= {found[1]: found[2] for word in command if (found := _ASSIGNMENT.match(word))}
        elif command:
            statement.commands.append(command)
    return statement


def _expanded(text: str, line: int, known: Mapping[str, str]) -> str:
    """The text without comments, and with its variables replaced as far as the shell replaces them."""
    parts, quote, at = [], "", 0
    while at < len(text):
        here = text[at]
        if here == "\\" and quote != "'":
            parts.append(text[at : at + 2])
            at += 2
            continue
        if here == "#" and not quote and (at == 0 or text[at - 1].isspace()):
            at = (text + "\n").index("\n", at)
            continue
        if here in "'\"" and quote in ("", here):
            quote = "" if quote else here
        found = _VARIABLE.match(text, at)
        if found is None:
            parts.append(here)
            at += 1
            continue
        name = found[1].strip("{}")
        if quote == "'":
            raise ShellError(line, f"${name} stands in single quotes, where the shell leaves it as it is")
        if name not in known:
            raise ShellError(line, f"${name} is set nowhere on the page before this")
        parts.append(known[name])
        at = found.end()
    return "".join(parts)


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    """The commands of a list or pipe, without what redirections name."""
    command: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif not _OPERATOR.match(word):
            command.append(word)
        elif word[0] in "<>":
            skip = True
            if command and command[-1].isdigit():
                command.pop()
        else:
            yield command
            command = []
    yield command
