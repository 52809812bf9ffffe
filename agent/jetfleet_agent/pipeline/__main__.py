"""One app's pipeline process: ``python -m jetfleet_agent.pipeline --app APP --socket PATH [--jsonl FILE]``.

Started by the supervisor. Ends with 0 after Stop, SIGTERM or when the supervisor's socket is gone; else with the exit code of the error.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
from pathlib import Path

from jetfleet_agent.ipc import Order, Stop
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.topics import check_name


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jetfleet_agent.pipeline", description="One app's pipeline; the supervisor starts it.")
    parser.add_argument("--app", required=True, help="name of the app")
    parser.add_argument("--socket", required=True, type=Path, help="the supervisor's Unix socket")
    parser.add_argument("--jsonl", type=Path, help="also append every result to this file")
    parser.add_argument("--overlap", choices=("on", "off"), help="for measurements: stages beside each other, or one after the other")
    return parser.parse_args()


def _quiet_video() -> None:
    # FFmpeg and OpenCV print camera URIs, passwords included, when they fail. Must be set before cv2 is imported.
    # A local camera that hangs in its driver is given up after 5 s instead of 10.
    os.environ.update(OPENCV_LOG_LEVEL="SILENT", OPENCV_FFMPEG_LOGLEVEL="-8", OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT="5")


def run(app: str, path: Path, lines_path: Path | None, overlap: bool | None = None) -> int:
    """Wire link, sinks and controller; returns the exit code."""
    from jetfleet_agent.crop_spool import CropSpool, spool_folder
    from jetfleet_agent.pipeline.cascade import CascadeStep
    from jetfleet_agent.pipeline.control import Controller, Note
    from jetfleet_agent.pipeline.link import Link
    from jetfleet_agent.pipeline.sinks import JsonLines, Sinks

    inbox: queue.SimpleQueue[Note] = queue.SimpleQueue()

    def on_order(order: Order | None) -> None:
        inbox.put(order)

    signal.signal(signal.SIGTERM, lambda *_: inbox.put(Stop()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the supervisor decides for us
    link = Link(path, on_order)
    sinks = Sinks(app, link.publish, JsonLines(lines_path) if lines_path else None, link.send)
    cascade = CascadeStep(app, CropSpool(spool_folder(path.parent, app)), link.send, sinks.amend)
    controller = Controller(app, inbox, link.send, sinks, cascade, link.take_dropped, overlap)
    link.start(app, os.getpid())
    try:
        return controller.run()
    finally:
        link.close()


def main() -> int:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr)
    _quiet_video()
    try:
        overlap = None if arguments.overlap is None else arguments.overlap == "on"
        return run(check_name("app", arguments.app), arguments.socket, arguments.jsonl, overlap)
    except JetfleetError as error:
        print(error.diagnostics(), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
