"""A local Ray head for development: token auth, loopback only, ports of its own, beside any other Ray on the host.

    python -m cluster.local up            # starts one that goes on; prints the variables to export
    eval "$(python -m cluster.local env)" # exports them
    python -m cluster.local status        # whether it lives; its addresses, nodes and jobs
    python -m cluster.local down          # ends it, and nothing else
    python -m cluster.local run           # one in the foreground, until Ctrl-C

Exit code 0: done, or it is so already. 1: the head failed, or (`status`, `env`) none runs. 2: the command line.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections import Counter
from typing import Any

import httpx

from cinesynth.settings import NAME_PATTERN
from cluster.local_head import HeadError, LocalHead, end_on_sigterm, end_processes, free_ports
from cluster.local_record import HeadRecord, heads_folder, held, names, read_record, remove_record, write_record

__all__ = ["HeadError", "LocalHead", "end_on_sigterm", "end_processes", "free_ports"]

_NODE_S = 30.0


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    arguments = _parser().parse_args(argv)
    try:
        code = arguments.command(arguments)
    except HeadError as e:
        print(f"error: {e}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("Stopped; what was started is ended.", file=sys.stderr)
        code = 130
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=_run, cpus=None)
    commands = parser.add_subparsers(title="commands", metavar="up|env|status|down|run")
    for name, command, text in (
        ("up", _up, "start a head that goes on after this command"),
        ("env", _env, "print `export` lines for a shell to evaluate"),
        ("status", _status, "say whether it lives; without --name, of all heads"),
        ("down", _down, "end a head and what it started"),
        ("run", _run, "run a head until Ctrl-C (what no command at all does, too)"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        if command is not _run:
            sub.add_argument("--name", type=_name, default=None if command is _status else "local", help="of the head")
        if command in (_up, _run):
            sub.add_argument("--cpus", type=_count, help="logical CPUs that work is scheduled on; default: 4")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: lower-case letters, digits, dots and dashes")
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of CPUs: 1 or more")
    return int(text)


def _up(arguments: argparse.Namespace) -> int:
    name = arguments.name
    with held(name):
        record = read_record(name)
        if record is not None and record.process() is not None:
            if arguments.cpus not in (None, record.num_cpus):
                raise HeadError(
                    f"the head {name!r} runs with {record.num_cpus} CPUs; end it first: {_command('down', name)}"
                )
            print(f"The head {name!r} is running already, since {record.since()}; nothing was started.")
        else:
            if record is not None:
                print(f"The head {name!r} ended by itself; what was left of it ({record.end()} processes) is ended.")
                remove_record(name)
            record = _start(name, arguments.cpus or 4)
            print(f"The head {name!r} runs until `{_command('down', name)}`.")
    print("\n".join(f"  {line}" for line in _exports(record)))
    print(f'or:  eval "$({_command("env", name)})"')
    print(f"Dashboard: {record.dashboard} (it asks for the token above)")
    print(f"Log: {record.log}\nRay's files: {record.ray_folder}")
    return 0


def _start(name: str, cpus: int) -> HeadRecord:
    log = heads_folder() / f"{name}.log"
    head = LocalHead(num_cpus=cpus, log=log)
    end_on_sigterm()
    try:
        head.start()
        record = HeadRecord.of(head, log)
        write_record(name, record)  # before it answers: if this command is killed, `down` still finds it
        head.wait_until_ready()
        _wait_for_a_node(record)
    except BaseException:
        head.stop()
        remove_record(name)
        raise
    return record


def _wait_for_a_node(record: HeadRecord) -> None:
    """The dashboard answers some seconds before the head can take work itself."""
    deadline = time.monotonic() + _NODE_S
    while True:
        reason = ""
        try:
            if _alive(record):
                return
        except (httpx.HTTPError, ValueError) as e:  # the state API begins later than the dashboard
            reason = f" ({type(e).__name__}: {e})"
        if time.monotonic() > deadline:
            raise HeadError(f"the head's own node was not there within {_NODE_S:g} s{reason}; its log: {record.log}")
        time.sleep(0.5)


def _alive(record: HeadRecord) -> list[dict[str, Any]]:
    """The cluster's nodes that live, as the state API tells them."""
    nodes = record.ask("/api/v0/nodes")["data"]["result"]["result"]
    return [node for node in nodes if node["state"] == "ALIVE"]


def _env(arguments: argparse.Namespace) -> int:
    record = read_record(arguments.name)
    if record is None or record.process() is None:
        raise HeadError(f"no head {arguments.name!r} runs; start one: {_command('up', arguments.name)}")
    print("\n".join(_exports(record)))
    return 0


def _exports(record: HeadRecord) -> list[str]:
    return [f"export {key}={shlex.quote(value)}" for key, value in record.variables.items()]


def _status(arguments: argparse.Namespace) -> int:
    told = [arguments.name] if arguments.name else names()
    if not told:
        print("no head runs; start one: python -m cluster.local up")
    return 0 if [_tell(name) for name in told].count(True) else 1


def _tell(name: str) -> bool:
    """Print how a head is; returns whether it takes jobs."""
    record = read_record(name)
    if record is None:
        print(f"{name}: not running; start it: {_command('up', name)}")
        return False
    if record.process() is None:
        print(f"{name}: it ended by itself; its log: {record.log}; clear up: {_command('down', name)}")
        return False
    try:
        alive = _alive(record)
        jobs = record.ask("/api/jobs/")
    except httpx.HTTPError as e:
        print(f"{name}: it runs (process {record.pid}) but its dashboard does not answer: {e}; its log: {record.log}")
        return False
    states = Counter(job["status"] for job in jobs)
    cpus = sum(node["resources_total"].get("CPU", 0) for node in alive)
    print(f"{name}: running since {record.since()} (process {record.pid})")
    print(f"  address    {record.variables['RAY_ADDRESS']}")
    print(f"  dashboard  {record.dashboard}")
    print(f"  Ray's files: {record.ray_folder}")
    print(f"  nodes      {len(alive)} with {cpus:g} CPUs")
    print(f"  jobs       {', '.join(f'{n} {state}' for state, n in sorted(states.items())) or 'none'}")
    for job in jobs:
        if job["status"] in ("PENDING", "RUNNING"):
            print(f"    {job['status']:<9}{job['submission_id'] or job['job_id']}  {job['entrypoint']}")
    return True


def _down(arguments: argparse.Namespace) -> int:
    name = arguments.name
    with held(name):
        record = read_record(name)
        if record is None:
            print(f"no head {name!r} runs; nothing was ended")
            return 0
        lived = record.process() is not None
        ended = record.end()
        remove_record(name)
    was = "is ended" if lived else "had ended by itself; what was left of it is ended"
    print(f"the head {name!r} {was} ({ended} processes)")
    return 0


def _command(command: str, name: str) -> str:
    return f"python -m cluster.local {command}" + ("" if name == "local" else f" --name {name}")


def _run(arguments: argparse.Namespace) -> int:
    end_on_sigterm()
    with LocalHead(num_cpus=arguments.cpus or 4) as head:
        print("A Ray head is running; Ctrl-C stops it. In another terminal:")
        for key, value in head.variables.items():
            print(f"  export {key}={value}")
        print("  python -m jobs.submit pipeline --config jobs/configs/nano/pipeline.yaml \\")
        print("      storage=$PWD/storage 'prepare.footage=[{path: /folder/of/videos}]'")
        print(f"Dashboard: {head.dashboard} (it asks for the token above)", flush=True)
        try:
            code = head.wait()
        except KeyboardInterrupt:
            print("Stopping.")
            return 0
    raise HeadError(f"the head ended by itself, with exit code {code}; start another one")


if __name__ == "__main__":
    main()
