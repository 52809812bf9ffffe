"""The command `mirror`: serves the published blobs over HTTP, for boards that fetch from a web server."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import typer

_HELP = """Serve the project's published blobs over HTTP(S), read-only, with ranges: boards' second transport.

Boards name it in their config: [mirror] url. What they fetch is checked against the signed chunk tables, so any web server over the folder
blobs/ will do as well (nginx: `location /blobs/ { alias FLEET/blobs/; }`). Who reaches it can read the models: beyond this machine it wants
TLS, and with --client-ca lets in only boards that show a certificate.

Examples:

    jetfleet mirror --dir fleet

    jetfleet mirror --dir fleet --bind 0.0.0.0:8443 --cert mirror.pem --key mirror.key --client-ca ca.pem
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("mirror", help=_HELP)(mirror)


def mirror(
    folder: Path = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`."),  # noqa: B008 - typer's way
    bind: str = typer.Option("127.0.0.1:8080", "--bind", help="Where to listen, HOST:PORT; port 0 takes any free one."),
    cert: Path | None = typer.Option(None, "--cert", help="The server's certificate (PEM): turns TLS on."),  # noqa: B008
    key: Path | None = typer.Option(None, "--key", help="Its key (PEM)."),  # noqa: B008
    client_ca: Path | None = typer.Option(None, "--client-ca", help="Only clients with a certificate by this CA."),  # noqa: B008
    insecure: bool = typer.Option(False, "--insecure-http", help="Plain HTTP beyond this machine, all the same."),
    as_json: bool = typer.Option(False, "--json", help="Say where it listens as one JSON line on stdout."),
) -> None:
    from jetfleet_host.mirror import MirrorServer, MirrorSettings, parse_bind
    from jetfleet_host.project import Project

    project = Project.load(folder)
    host, port = parse_bind(bind)
    with MirrorServer(project.blobs, MirrorSettings(host, port, cert, key, client_ca, insecure)) as server:
        def stop(_number: int, _frame: object) -> None:
            threading.Thread(target=server.shutdown).start()  # it waits for this very thread

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print(json.dumps({"event": "up", "url": server.url}) if as_json
              else f"Serving the blobs of {project.dir} at {server.url}. Ctrl-C ends it.", flush=True)
        server.serve_forever()
    if not as_json:
        print(f"Stopped. {server.sent_bytes} bytes were sent.", file=sys.stderr)
