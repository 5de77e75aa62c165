"""Create, revoke and list API keys: `python -m serve.keys create|revoke|list`."""

from __future__ import annotations

import argparse
import sys

from cinesynth.errors import CinesynthError
from serve.auth import SCOPES, create_key, read_keys, revoke_key


def main(argv: list[str] | None = None) -> None:
    """Run a command on the keys file. Exit code 2: the user can fix what is wrong, and stderr says it."""
    parser = argparse.ArgumentParser(prog="python -m serve.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("create", "print a new key, once"),
        ("revoke", "remove a key"),
        ("list", "print names and what they may do"),
    ):
        sub = commands.add_parser(command, help=text)
        sub.add_argument("--file", required=True, help="keys file (JSON, mode 0600); made when missing")
        if command != "list":
            sub.add_argument("--name", required=True, help="owner; videos belong to it")
        if command == "create":
            sub.add_argument("--scopes", default="videos", help=f"comma-separated, of {', '.join(SCOPES)}")
            sub.add_argument("--max-flops-per-job", type=float, help="most work of one request, as 1e18; default: any")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "create":
            scopes = [scope.strip() for scope in arguments.scopes.split(",")]
            print(create_key(arguments.file, arguments.name, scopes, arguments.max_flops_per_job))
        elif arguments.command == "revoke":
            revoke_key(arguments.file, arguments.name)
        else:
            for name, key in sorted(read_keys(arguments.file).items()):
                cap = "" if key.max_flops_per_job is None else f", {key.max_flops_per_job:g} FLOPs a job"
                print(f"{name}: {', '.join(key.scopes)}{cap}")
    except CinesynthError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
