"""The command `serve`: wires broker, link and server, and ends cleanly on SIGTERM and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import typer

_HELP = """Run the control side of a fleet: collect what boards say, deliver models, carry out rollouts.

One process for one project folder, until Ctrl-C or SIGTERM. Where jetfleet.toml says `embedded = true` it starts the broker too.
Of several processes on one database (a copy of the project folder on each machine), one serves; the others stand by and take over.

Examples:

    jetfleet serve --dir fleet

    jetfleet serve --dir fleet --json     # one JSON line when the link comes (up) or goes (down), or it stands by (standby)
"""

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("serve", help=_HELP)(serve)


def serve(
    folder: Path = _DIR,
    as_json: bool = typer.Option(False, "--json", help="Say what happens as JSON lines on stdout."),
) -> None:
    from jetfleet_contract.errors import OrderError
    from jetfleet_host import clock
    from jetfleet_host.brokers import EmbeddedBroker
    from jetfleet_host.custody import online
    from jetfleet_host.mqtt import BrokerSettings, MqttLink
    from jetfleet_host.project import Project
    from jetfleet_host.serve import Link, Server, only_server

    project = Project.load(folder)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with only_server(project.dir), contextlib.ExitStack() as ending:
        section = project.settings.broker
        broker = EmbeddedBroker(section.port, section.host) if section.embedded else None
        if broker is not None:
            broker.start()
            ending.callback(broker.stop)
        if broker is None:  # a fleet on a network: say what would let a thief of this machine choose what boards run
            for finding in online(project):
                print(f"warning: {finding.what} [{finding.code}]\n  try:   {finding.remedy}", file=sys.stderr)
        settings = BrokerSettings(
            host=section.host, port=broker.port if broker else section.port, username=section.username,
            password_file=section.password_file, ca=section.ca, cert=section.cert, key=section.key, keepalive_s=section.keepalive_s,
            limits=section.limits)
        where = f"{settings.host}:{settings.port}"

        def connect(on_message: Callable[[str, bytes], None], on_up: Callable[[], None], on_down: Callable[[str], None]) -> Link:
            return MqttLink(settings, f"jetfleet-serve-{secrets.token_hex(4)}", on_message, on_up, on_down)

        def notify(event: str, detail: str) -> None:
            line = {"event": event, "broker": where, "detail": detail}
            text = {"up": f"Serving {project.dir} over {where}. Ctrl-C ends it.", "down": f"No broker at {where}: {detail}; trying again.",
                    "limits": f"The broker at {where}: {detail}.",
                    "standby": f"Standing by: {detail} serves this database.", "superseded": f"Another process serves now: {detail}"}
            print(json.dumps(line) if as_json else text[event], flush=True)

        def serve_a_term() -> None:
            try:
                Server(project, connect, clock.now, notify, broker).run(stop)
            except OrderError as error:
                if error.code != "serve.superseded":
                    raise
                notify("superseded", error.what)

        while not stop.is_set():
            serve_a_term()
    if not as_json:
        print("Stopped.", file=sys.stderr)
