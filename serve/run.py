"""Deploy the service on a running Ray cluster: `python -m serve.run --config serve/config/nano.yaml`.

`python -m serve.run --delete` takes it down.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import httpx

from cinesynth.errors import CinesynthError, ConfigError
from cinesynth.session import check_head, connect
from cinesynth.settings import load_config
from cinesynth.settings_help import help_text
from serve.config import ServeConfig
from serve.engine import Groups, rank_group

READY_S = 120.0
PROXY_S = 30.0
ALONE_S = 15.0
ASKED = 16
"""Connections that all have to reach this service: where two share a port, one in 65,000 times all do."""


def deploy(config: ServeConfig, groups: Groups = rank_group) -> str:
    """Deploy on the cluster that this process is connected to. Returns the URL once the service is ready.

    The service stays when this process ends. Deploying again replaces it, and queued videos are kept; where nothing
    changed, no replica is restarted.

    Raises:
        CinesynthError: an input is missing, or nothing answers at the configured host and port.
    """
    from ray import serve as ray_serve

    from serve.app import APP, build_app, release_of

    config.check_inputs()
    config = config.resolved()
    url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
    ray_serve.start(http_options={"host": config.host, "port": config.port, "location": "EveryNode"})
    _check_proxy(url)
    if APP not in ray_serve.status().applications and _answer(url) is not None:
        raise ConfigError(f"{url} is answered by another server already; choose another port, or stop that one")
    release = release_of(config, groups)
    standing = ray_serve.status().applications.get(APP)
    same = {"status": "ready", "service": config.service(), "release": release}
    if standing is not None and standing.status == "RUNNING" and _answer(url) == same:
        return url
    application = build_app(config, groups)  # it may bring the database to a new version: not before the port is ours
    ray_serve.run(application, name=APP, route_prefix="/", blocking=False)
    _wait_ready(url, config.service(), release)
    return url


def delete() -> bool:
    """Take the service down on the cluster that this process is connected to; what is stored stays, the queue too.

    False: there is none.
    """
    from ray import serve as ray_serve

    from serve.app import APP

    found = APP in ray_serve.status().applications
    if found:
        ray_serve.delete(APP)
    return found


def _check_proxy(url: str) -> None:
    """Raise ConfigError where no proxy of Serve listens at the URL: one that was started before keeps its port."""
    deadline = time.monotonic() + PROXY_S
    while time.monotonic() < deadline:
        answer = _get(f"{url}/-/healthz")
        if answer is not None and answer.status_code in (200, 503):  # 503: it has no application yet
            return
        time.sleep(0.2)
    raise ConfigError(
        f"no proxy of Ray Serve answers at {url}: Serve was started on this cluster before with another host or port; "
        "use those, or stop it with `serve shutdown`"
    )


def _get(url: str) -> httpx.Response | None:
    """What is answered over a connection of its own, past any proxy of the environment; None: nothing is."""
    try:
        with httpx.Client(trust_env=False, timeout=20) as client:
            return client.get(url)
    except httpx.HTTPError:
        return None


def _answer(url: str) -> dict[str, Any] | None:
    """What the service that is ready at a URL says of itself; {} for a server of another kind; None: none is ready."""
    answer = _get(f"{url}/readyz")
    if answer is None or answer.status_code >= 500:
        return None
    if answer.status_code == 404 and answer.text.startswith("Path '/readyz' not found."):  # Serve without application
        return None
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) and "service" in told else {}


def _wait_ready(url: str, service: str, release: str) -> None:
    """Wait until what was deployed answers, and nobody else does.

    Linux lets two servers share a port, so that each answers some of the connections: it is asked several times.
    """
    deadline = time.monotonic() + READY_S
    alone_by = time.monotonic() + ALONE_S
    asked = 0
    while asked < ASKED:
        found = _answer(url)
        ours = found is not None and found.get("service") == service
        deployed = ours and found is not None and found.get("release") == release  # the former one answers for a moment
        asked = asked + 1 if deployed else 0
        if found is not None and not ours and time.monotonic() > alone_by:
            raise ConfigError(
                f"another server answers at {url}, and takes requests of this one; choose another port, or stop it"
            )
        if time.monotonic() > deadline:
            raise ConfigError(f"the service is not ready at {url} after {READY_S:g} s; its replicas' logs say why")
        if not deployed:
            time.sleep(0.2)


def main(argv: list[str] | None = None) -> None:
    """Deploy. Exit code 0: the service is ready; 2: the user can fix what is wrong, and the last line says it."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.run",
        description=__doc__,
        epilog=f"key=value, nested with dots, e.g. engine.max_replicas=2\n\n{help_text(ServeConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="YAML file; the shipped ones are under serve/config/")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="HOST:PORT of the Ray head")
    parser.add_argument("--block", action="store_true", help="stay, and take the service down when interrupted")
    parser.add_argument("--delete", action="store_true", help="take the service down; queue and videos stay stored")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    try:
        if arguments.delete:
            _connect(arguments.address)
            print("the service is down" if delete() else "no service runs there", flush=True)
            return
        config = load_config(ServeConfig, arguments.config, arguments.overrides)
        config.check_inputs()
        _connect(arguments.address)
        url = deploy(config)
    except CinesynthError as e:
        sys.stdout.flush()
        print(f"error: {e}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    print(f"cinesynth serves {config.resolved().model_name()} at {url}", flush=True)
    if arguments.block:
        _block()


def _connect(address: str | None) -> None:
    if not address or address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {address!r}: give HOST:PORT of a running Ray head (or set RAY_ADDRESS); none is started here"
        )
    check_head(address, "--address")
    connect(address, "--address", log_to_driver=False)


def _block() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        delete()


if __name__ == "__main__":
    main()
