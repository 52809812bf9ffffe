"""Everything mosquitto needs to run for a fleet, in one folder of the project: configuration, ACL, certificates.

    broker/mosquitto.conf    run it with: mosquitto -c DIR/broker/mosquitto.conf
    broker/acl               who may read and write what
    broker/server.pem .key   the broker's certificate
    broker/ca.pem crl.pem    copies of the authority's
    broker/host.pem .key     the certificate of `jetfleet serve`
    broker/data/             retained and queued messages
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import InputError
from jetfleet_host.brokers import write_acl, write_mosquitto_config
from jetfleet_host.certificates import HOST_USER, CertificateAuthority, Issued
from jetfleet_host.durable import write_file

if TYPE_CHECKING:
    from jetfleet_host.project import Project

TLS_PORT = 8883


def authority_of(project: Project, passphrase: bytes | None = None) -> CertificateAuthority:
    """The project's certificate authority. InputError `ca.missing`."""
    return CertificateAuthority.open(project.dir / "ca", passphrase)


def broker_folder(project: Project) -> Path:
    return project.dir / "broker"


def prepare(project: Project, *, bind: str, port: int = TLS_PORT, hosts: Sequence[str] = (), user: str = "",
            passphrase: bytes | None = None) -> Path:
    """Write the folder; gives the configuration's path. May be called again: certificates that are there stay.

    Args:
        bind: address to listen on. hosts: names and addresses that boards dial; needed where `bind` is none of them.
            Given again, the broker gets a new certificate.
        user: whom mosquitto becomes when root starts it; the present user when empty.

    Raises:
        InputError: `ca.missing`, `ca.host`, `broker.hosts`, `broker.user`, `keys.*`. StorageError.
    """
    authority = authority_of(project, passphrase)
    folder = broker_folder(project)
    data = folder / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hosts or not (folder / "server.pem").exists():
        write_issued(folder, "server", authority.issue_server(hosts or [_dialled(bind)]))
    if not (folder / "host.pem").exists():
        write_issued(folder, "host", authority.issue_host())
    write_file(folder / "ca.pem", authority.certificate_file.read_bytes())
    refresh_access(project, authority)
    owner = user or getpass.getuser()
    config = write_mosquitto_config(
        folder / "mosquitto.conf", port=port, bind=bind, ca=str(folder / "ca.pem"), cert=str(folder / "server.pem"),
        key=str(folder / "server.key"), crl=str(folder / "crl.pem"), acl_file=str(folder / "acl"), persistence=data, user=owner)
    _give(owner, folder / "server.key", data)
    return config


def refresh_access(project: Project, authority: CertificateAuthority) -> bool:
    """Bring ACL and revocation list of the broker's folder up to date; False when there is none. Mosquitto reads them on SIGHUP."""
    folder = broker_folder(project)
    if not folder.is_dir():
        return False
    write_file(folder / "crl.pem", authority.revocation_file.read_bytes())
    write_acl(folder / "acl", HOST_USER, authority.revoked_devices())
    return True


def write_issued(folder: Path, stem: str, issued: Issued) -> None:
    """Write ``STEM.pem`` and, where the key was made here, ``STEM.key`` with mode 0600."""
    folder.mkdir(parents=True, exist_ok=True)
    if issued.key:
        write_file(folder / f"{stem}.key", issued.key, mode=0o600)
    write_file(folder / f"{stem}.pem", issued.certificate)


def settings_text(project: Project, port: int) -> str:
    """The lines that jetfleet.toml needs under [broker] to use this broker."""
    folder = broker_folder(project).name
    return (f'[broker]\nembedded = false\nhost = "THE BROKER\'S NAME"\nport = {port}\n'
            f'ca = "{folder}/ca.pem"\ncert = "{folder}/host.pem"\nkey = "{folder}/host.key"\n')


def _dialled(bind: str) -> str:
    try:
        anything = ipaddress.ip_address(bind.strip("[]")).is_unspecified
    except ValueError:
        anything = False
    if anything:
        raise InputError("broker.hosts", f"nobody dials {bind}: under which names will boards reach the broker?", where="--bind",
                         remedy="name them: --server mqtt.example.org --server 192.168.1.10")
    return bind


def _give(user: str, *paths: Path) -> None:
    """Let the broker's user read its key and write its data, where we may decide that."""
    if os.geteuid() != 0:
        return
    try:
        for path in paths:
            shutil.chown(path, user)
    except LookupError:
        raise InputError("broker.user", f"this machine has no user {user!r}", where="--user", remedy="give mosquitto's user") from None
