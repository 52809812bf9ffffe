"""Commands: broker, and the certificate authority for brokers on a network."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from jetfleet_contract.errors import InputError
from jetfleet_host.commands.passphrases import passphrase_from

DEFAULT_PORT = 1883
MAX_CSR_BYTES = 16 * 1024

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_PASSPHRASE = typer.Option(None, "--passphrase-file", help="File whose first line opens the authority's key.")
_SERVER = typer.Option([], "--server", help="A name or address that boards dial; may be given more than once.")
_CSR = typer.Option(None, "--csr", help="Signing request made on the board, so that its key never leaves it.")
_OUT = typer.Option(None, "--out", "-o", help="Folder for the files; default: DIR/broker/issued/NAME.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    broker = typer.Typer(name="broker", invoke_without_command=True)
    authority = typer.Typer(name="ca", help="The certificate authority for the broker.", no_args_is_help=True)
    broker.callback()(run)
    authority.command("init")(ca_init)
    authority.command("list")(ca_list)
    broker.add_typer(authority)
    broker.command("cert")(cert)
    broker.command("revoke")(revoke)
    broker.command("mosquitto")(mosquitto)
    app.add_typer(broker)


def run(
    context: typer.Context,
    port: int = typer.Option(DEFAULT_PORT, "--port", "-p", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one."),
    bind: str = typer.Option("127.0.0.1", "--bind", help="Loopback only; anything else is refused."),
    as_json: bool = typer.Option(False, "--json", help="Say where it listens as JSON."),
) -> None:
    """Run the embedded MQTT broker in the foreground, on loopback only, until Ctrl-C.

    It keeps nothing on disk and lets every local program in: for laptops and trials. For boards on a network use mosquitto,
    which `jetfleet broker mosquitto` sets up with mutual TLS and an ACL.

    Examples:

        jetfleet broker --port 1883

        jetfleet broker ca init --dir fleet && jetfleet broker mosquitto --dir fleet --bind 0.0.0.0 --server mqtt.example.org
    """
    from jetfleet_host.brokers import LOOPBACK, EmbeddedBroker

    if context.invoked_subcommand is not None:
        return
    signal.signal(signal.SIGTERM, _stop)
    embedded = EmbeddedBroker(port, bind)
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


def ca_init(
    folder: Path = _DIR,
    encrypt: bool = typer.Option(False, "--encrypt", help="Ask for a passphrase that protects the authority's key."),
    passphrase_file: Path | None = _PASSPHRASE,
    as_json: bool = _JSON,
) -> None:
    """Make the project's certificate authority: ca/ca.pem is what boards trust the broker by.

    Example: jetfleet broker ca init --dir fleet --encrypt
    """
    from jetfleet_host.certificates import CertificateAuthority
    from jetfleet_host.project import Project

    project = Project.load(folder)
    passphrase = passphrase_from(passphrase_file, ask=encrypt, confirm=True)
    authority = CertificateAuthority.create(project.dir / "ca", project.dir.name, passphrase)
    _print(as_json, {"ca": str(authority.certificate_file)}, [
        f"Boards trust the broker by {authority.certificate_file}.",
        "Next: jetfleet broker mosquitto --bind ADDRESS, and jetfleet broker cert --device NAME for each board."])


def ca_list(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List the certificates: for whom, until when, and which count no longer.

    Example: jetfleet broker ca list --dir fleet
    """
    from jetfleet_host.broker_setup import authority_of
    from jetfleet_host.project import Project

    rows = [asdict(row) for row in authority_of(Project.load(folder)).issued()]
    lines = [f"{'name':<24} {'kind':<7} {'expires':<11} {'state':<8} serial"]
    lines += [f"{row['name']:<24} {row['kind']:<7} {_day(row['expires']):<11} {'revoked' if row['revoked'] else 'good':<8} {row['serial']}"
              for row in rows]
    _print(as_json, rows, lines if rows else ["No certificate has been issued."])


def cert(
    device: str = typer.Option("", "--device", help="The board that gets a client certificate."),
    server: list[str] = _SERVER,
    host: bool = typer.Option(False, "--host", help="A client certificate for `jetfleet serve`."),
    csr: Path | None = _CSR,
    out: Path | None = _OUT,
    folder: Path = _DIR,
    passphrase_file: Path | None = _PASSPHRASE,
    as_json: bool = _JSON,
) -> None:
    """Issue one certificate: for a board, for a broker, or for the host.

    Examples:

        jetfleet broker cert --dir fleet --device gate-7 --csr gate-7.csr

        jetfleet broker cert --dir fleet --device bench-1 --out bench-1     # a lab: the key is made here

        jetfleet broker cert --dir fleet --server mqtt.example.org --server 192.168.1.10
    """
    from jetfleet_host.broker_setup import authority_of, broker_folder, write_issued
    from jetfleet_host.certificates import HOST_USER
    from jetfleet_host.durable import write_file
    from jetfleet_host.project import Project

    if [bool(device), bool(server), host].count(True) != 1 or (csr and not device):
        raise InputError("ca.whom", "say for whom: one of --device NAME, --server HOST, --host; --csr goes with --device",
                         where="broker cert", remedy="see jetfleet broker cert --help")
    project = Project.load(folder)
    authority = authority_of(project, passphrase_from(passphrase_file, ask=False))
    issued = (authority.issue_device(device, _request(csr)) if device else authority.issue_server(server) if server
              else authority.issue_host())
    stem = device or ("server" if server else "host")
    target = out or broker_folder(project) / "issued" / (device or (server[0].lower() if server else HOST_USER.lower()))
    write_issued(target, stem, issued)
    write_file(target / "ca.pem", authority.certificate_file.read_bytes())
    made = {"certificate": str(target / f"{stem}.pem"), "key": str(target / f"{stem}.key") if issued.key else "",
            "ca": str(target / "ca.pem")}
    _print(as_json, made, [f"{what:<12} {path}" for what, path in made.items() if path])


def revoke(name: str = typer.Argument(..., metavar="NAME", help="Device, or the name that `broker ca list` shows."), folder: Path = _DIR,
           passphrase_file: Path | None = _PASSPHRASE, as_json: bool = _JSON) -> None:
    """Revoke every certificate of a board (or broker): the broker lets it in no longer.

    Example: jetfleet broker revoke gate-7 --dir fleet && kill -HUP $(pidof mosquitto)
    """
    from jetfleet_host.broker_setup import authority_of, refresh_access
    from jetfleet_host.project import Project

    project = Project.load(folder)
    authority = authority_of(project, passphrase_from(passphrase_file, ask=False))
    serials = authority.revoke(name)
    written = refresh_access(project, authority)
    told = "Send mosquitto a SIGHUP (its ACL then silences the board at once), or restart it." if written else (
        f"Give {authority.revocation_file} to the broker and restart it.")
    _print(as_json, {"name": name, "serials": list(serials), "written": written}, [f"Revoked {len(serials)} of {name}.", told])


def mosquitto(
    bind: str = typer.Option(..., "--bind", help="Address to listen on; 0.0.0.0 for all."),
    server: list[str] = _SERVER,
    port: int = typer.Option(8883, "--port", "-p", min=1, max=65535, help="Port for TLS."),
    user: str = typer.Option("", "--user", help="Whom mosquitto becomes when root starts it; default: you."),
    folder: Path = _DIR,
    passphrase_file: Path | None = _PASSPHRASE,
    as_json: bool = _JSON,
) -> None:
    """Write all that mosquitto needs for this fleet: mutual TLS, an ACL that keeps each board to its own topics, certificates.

    Examples:

        jetfleet broker mosquitto --dir fleet --bind 0.0.0.0 --server mqtt.example.org --user mosquitto

        mosquitto -c fleet/broker/mosquitto.conf
    """
    from jetfleet_host.broker_setup import prepare, settings_text
    from jetfleet_host.project import Project

    project = Project.load(folder)
    config = prepare(project, bind=bind, port=port, hosts=server, user=user, passphrase=passphrase_from(passphrase_file, ask=False))
    settings = settings_text(project, port)
    _print(as_json, {"config": str(config), "settings": settings}, [
        f"Run the broker with:  mosquitto -c {config}", f"In {project.dir / 'jetfleet.toml'}:", "", settings])


def _request(csr: Path | None) -> bytes | None:
    if csr is None:
        return None
    try:
        with csr.open("rb") as stream:
            return stream.read(MAX_CSR_BYTES + 1)
    except OSError as error:
        raise InputError("ca.csr", f"the signing request cannot be read: {error.strerror}", where=str(csr),
                         remedy="give the path of its file") from None


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
