"""A tiny pipeline program for the supervisor's tests: speaks ipc, runs no model. ``fake_pipeline.py --app APP --socket PATH``

The "model" file says what it does, in JSON: `do` is crash (SIGSEGV once it runs), fail (says Failed, ends), camera (fails with a source
code), silent (never says anything again), hang (never runs), slow-stop (ignores Stop), exit, garbage, or nothing special.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from jetfleet_agent import ipc
from jetfleet_contract.trials import TrialNumbers


class Fake:
    def __init__(self, app: str, path: str) -> None:
        self.app = app
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link.connect(path)
        self.champion: ipc.Model | None = None
        self.challenger: ipc.Model | None = None
        self.previous: ipc.Model | None = None
        self.quiet = False
        self.run_order: ipc.Run | None = None

    def say(self, event: object) -> None:
        self.link.sendall(ipc.to_line(event))  # type: ignore[arg-type]

    def windows(self) -> None:
        while not self.quiet:
            self.say(ipc.Window(time.time(), 0.05, ()))
            time.sleep(0.05)

    def take(self, model: ipc.Model) -> None:
        plan = json.loads(Path(model.path).read_text())
        action = plan.get("do", "")
        if action == "crash":
            print("something in the vendor's runtime broke", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if action == "exit":
            sys.exit(7)
        if action in ("fail", "camera"):
            self.say(ipc.Failed(model.bundle, "runtime.failed" if action == "fail" else "source.gone", "as planned"))
            sys.exit(1)
        if action == "garbage":
            self.link.sendall(b"{this is no event}\n")
            time.sleep(60)
        if action == "hang":
            time.sleep(600)
        self.champion = model
        self.quiet = action == "silent"

    def obey(self, order: ipc.Order) -> bool:
        if isinstance(order, ipc.Run):
            self.run_order = order
            self.take(order.model)
            self.say(ipc.Running(order.model.bundle, order.model.candidate.name, frames=1, at=time.monotonic()))
            threading.Thread(target=self.windows, daemon=True).start()
        elif isinstance(order, ipc.Try):
            self.challenger = order.model
            self.say(ipc.TrialResult(order.model.bundle, TrialNumbers(live_frames=30, live_agreement=0.99, champion_p99_ms=10.0,
                                                                      challenger_p99_ms=9.0)))
        elif isinstance(order, ipc.Switch) and self.challenger is not None:
            self.previous = self.champion
            self.say(ipc.Switched(order.bundle, self.challenger.candidate.name, 12.0, 0, 20.0))
            self.take(self.challenger)
            self.challenger = None
        elif isinstance(order, ipc.Back):
            if self.previous is None:
                self.say(ipc.TrialResult("", TrialNumbers(), "trial.none", "nothing to go back to"))
                return True
            self.champion = self.previous
            self.say(ipc.Switched(self.champion.bundle, self.champion.candidate.name, 12.0, 0, 20.0))
        elif isinstance(order, ipc.Configure):
            self.say(ipc.SourceEvent("config", True, str(order.config.version)))
        elif isinstance(order, ipc.Stop) and self.champion is not None:
            return bool(json.loads(Path(self.champion.path).read_text()).get("do") == "slow-stop")
        return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--app", required=True)
    parser.add_argument("--socket", required=True)
    arguments = parser.parse_args()
    fake = Fake(arguments.app, arguments.socket)
    fake.say(ipc.Hello(arguments.app, os.getpid()))
    with fake.link.makefile("rb") as orders:
        for line in orders:
            if not fake.obey(ipc.order_from(line)):
                break


if __name__ == "__main__":
    main()
