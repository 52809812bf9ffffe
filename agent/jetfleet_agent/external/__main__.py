"""One external app's process: ``python -m jetfleet_agent.external --config FILE --app APP --socket PATH``; the supervisor starts it."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
from pathlib import Path

from jetfleet_agent.config import load
from jetfleet_agent.ipc import Order, Stop
from jetfleet_agent.pipeline.link import Link
from jetfleet_contract.errors import InputError, JetfleetError

from .runner import ExternalRunner, Note


def run(config: Path, app: str, path: Path) -> int:
    """Wire link and runner; returns the exit code."""
    settings = load(config).external.get(app)
    if settings is None:
        raise InputError("external.unknown", f"[external.{app}] is not in the agent's config", where=str(config))
    inbox: queue.SimpleQueue[Note] = queue.SimpleQueue()

    def on_order(order: Order | None) -> None:
        inbox.put(order)

    signal.signal(signal.SIGTERM, lambda *_: inbox.put(Stop()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the supervisor decides for us
    link = Link(path, on_order)
    link.start(app, os.getpid())
    try:
        return ExternalRunner(app, settings, inbox, link.send).run()
    finally:
        link.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="jetfleet_agent.external", description="One external app; the supervisor starts it.")
    parser.add_argument("--config", required=True, type=Path, help="the agent's config")
    parser.add_argument("--app", required=True, help="name of the app")
    parser.add_argument("--socket", required=True, type=Path, help="the supervisor's Unix socket")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return run(arguments.config, arguments.app, arguments.socket)
    except JetfleetError as error:
        print(error.diagnostics(), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
