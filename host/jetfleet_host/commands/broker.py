"""Commands: broker."""

from __future__ import annotations

import json
import signal
from types import FrameType

import typer

DEFAULT_PORT = 1883


def register(app: typer.Typer) -> None:
    """Add this module's commands."""

    @app.command()
    def broker(
        port: int = typer.Option(DEFAULT_PORT, "--port", "-p", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one."),
        as_json: bool = typer.Option(False, "--json", help="Say where it listens as JSON."),
    ) -> None:
        """Run the embedded MQTT broker in the foreground, on loopback only, until Ctrl-C.

        It keeps nothing on disk and lets every local program in: for laptops and trials. For boards on a network use mosquitto.
        """
        from jetfleet_host.brokers import LOOPBACK, EmbeddedBroker

        signal.signal(signal.SIGTERM, _stop)
        embedded = EmbeddedBroker(port)
        try:
            embedded.start()
            if as_json:
                typer.echo(json.dumps({"host": LOOPBACK, "port": embedded.port}))
            else:
                typer.echo(f"MQTT broker on {LOOPBACK}:{embedded.port}, in memory, this machine only. Ctrl-C stops it.")
            status = embedded.wait()
        except KeyboardInterrupt:
            typer.echo("broker stopped", err=True)
            status = 0
        finally:
            embedded.stop()
        raise typer.Exit(1 if status else 0)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
