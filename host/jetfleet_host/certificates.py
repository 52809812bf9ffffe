"""The fleet's own certificate authority for the broker: who may connect, under which name, and who may no longer.

    ca/ca.pem            the authority's certificate: what boards and host trust the broker by
    ca/ca.key            its private key, mode 0600, encrypted where a passphrase was given
    ca/crl.pem           certificates that count no longer
    ca/issued/SERIAL.pem every certificate that was issued; there is no other index

X.509 version 3, ECDSA P-256. A device's certificate names it (common name = device name) and is good for clients only, the broker's for
servers only: a stolen board cannot pose as the broker. The host's name holds capitals, which no device name may.

OpenSSL refuses every client once a revocation list has expired, so the list lives as long as the authority and is written anew at each
revocation; a broker reads it at its start and on SIGHUP.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jetfleet_contract.errors import InputError, JetfleetError, StorageError
from jetfleet_contract.topics import check_name
from jetfleet_host.durable import write_file
from jetfleet_host.keys import private_bytes, read_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

HOST_USER = "JETFLEET-HOST"
CA_DAYS = 20 * 365
SERVER_DAYS = 825
CLIENT_DAYS = 5 * 365
MAX_CSR_BYTES = 16 * 1024
MAX_HOSTS = 32
CLOCK_SLACK = timedelta(days=1)
"""Certificates begin a day early: the board that gets one may be behind."""

Kind = Literal["server", "device", "host"]


@dataclass(frozen=True)
class Issued:
    """A certificate and, where it was made here, its private key (PKCS#8), both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class CertificateRow:
    """One certificate. `name`: the device, the host's user, or the broker's first host name. `expires`: seconds since 1970."""

    name: str
    kind: str
    serial: str
    expires: float
    revoked: bool


class CertificateAuthority:
    """The ``ca/`` folder of a project, open. The private key is read only when something is signed."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._certificate = _load_certificate(self.certificate_file)

    @property
    def certificate_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def revocation_file(self) -> Path:
        return self.folder / "crl.pem"

    @classmethod
    def create(cls, folder: Path, name: str, passphrase: bytes | None = None) -> CertificateAuthority:
        """Make the authority. The certificate comes last: without it there is none.

        Raises:
            InputError: `ca.exists`. StorageError: `store.write`.
        """
        from cryptography import x509

        if (folder / "ca.pem").exists():
            raise InputError("ca.exists", "this project has a certificate authority already", where=str(folder),
                             remedy="use it: a new one would lock out every board that has a certificate")
        (folder / "issued").mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        key = _new_key()
        subject = _name(f"{name} jetfleet CA"[:64])
        builder = _builder(subject, subject, key.public_key(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
        certificate = builder.sign(key, _sha256())
        write_file(folder / "ca.key", private_bytes(key, passphrase), mode=0o600)
        write_file(folder / "crl.pem", _revocations(certificate, key, []))
        write_file(folder / "ca.pem", _pem(certificate))
        return cls(folder, passphrase)

    @classmethod
    def open(cls, folder: Path, passphrase: bytes | None = None) -> CertificateAuthority:
        """Open the authority. InputError `ca.missing`, `ca.unreadable`."""
        if not (folder / "ca.pem").is_file():
            raise InputError("ca.missing", "this project has no certificate authority", where=str(folder),
                             remedy="make one: jetfleet broker ca init")
        return cls(folder, passphrase)

    def issue_server(self, hosts: Sequence[str]) -> Issued:
        """A certificate for a broker under these host names and addresses. InputError `ca.host`."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        if not 0 < len(hosts) <= MAX_HOSTS:
            raise InputError("ca.host", f"{len(hosts)} names are not within 1..{MAX_HOSTS}", remedy="name the broker as boards dial it")
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        key = _new_key()
        certificate = self._sign(hosts[0][:64], key.public_key(), SERVER_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, names)
        return Issued(certificate, private_bytes(key, None))

    def issue_device(self, name: str, csr: bytes | None = None) -> Issued:
        """A client certificate for a board.

        Args:
            csr: a signing request (PEM) whose private key stays on the board. Without one the key is made here: for labs.

        Raises:
            InputError: `ca.csr`, `keys.*`. MalformedError: `name.bad`.
        """
        return self._issue_client(check_name("device", name), csr)

    def issue_host(self) -> Issued:
        """The client certificate of `jetfleet serve`."""
        return self._issue_client(HOST_USER, None)

    def _issue_client(self, name: str, csr: bytes | None) -> Issued:
        from cryptography.x509.oid import ExtendedKeyUsageOID

        if csr is not None:
            return Issued(self._sign(name, _requested_key(csr, name), CLIENT_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH), b"")
        key = _new_key()
        return Issued(self._sign(name, key.public_key(), CLIENT_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH), private_bytes(key, None))

    def _sign(self, name: str, key: object, days: int, purpose: object, names: x509.SubjectAlternativeName | None = None) -> bytes:
        from cryptography import x509

        builder = _builder(_name(name), self._certificate.subject, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)  # type: ignore[list-item]  # an OID
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key(), _sha256())
        data = _pem(certificate)
        write_file(self.folder / "issued" / f"{certificate.serial_number:040x}.pem", data)
        return data

    def revoke(self, name: str) -> tuple[str, ...]:
        """Revoke every certificate of that name that still counts; gives their serial numbers. InputError `ca.unknown`."""
        rows = self.issued()
        serials = tuple(row.serial for row in rows if row.name == name and not row.revoked)
        if not serials:
            known = ", ".join(sorted({row.name for row in rows if not row.revoked})[:12])
            raise InputError("ca.unknown", f"no certificate of {name[:63]!r} counts", where=str(self.folder),
                             remedy=f"known are: {known or 'none'}")
        every = [*(row.serial for row in rows if row.revoked), *serials]
        write_file(self.revocation_file, _revocations(self._certificate, self._key(), every))
        return serials

    def issued(self) -> tuple[CertificateRow, ...]:
        """Every certificate, by name; the newest of a name last."""
        gone = self._revoked()
        rows = [_row(_load_certificate(path), gone) for path in (self.folder / "issued").glob("*.pem")]
        return tuple(sorted(rows, key=lambda row: (row.kind, row.name, row.expires)))

    def revoked_devices(self) -> tuple[str, ...]:
        """Devices without any certificate that counts."""
        rows = [row for row in self.issued() if row.kind == "device"]
        good = {row.name for row in rows if not row.revoked}
        return tuple(sorted({row.name for row in rows} - good))

    def _revoked(self) -> frozenset[int]:
        from cryptography import x509

        try:
            entries = x509.load_pem_x509_crl(self.revocation_file.read_bytes())
        except (OSError, ValueError) as error:
            raise _unreadable(self.revocation_file, error) from None
        return frozenset(entry.serial_number for entry in entries)

    def _key(self) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

        path = self.folder / "ca.key"
        key = read_private(path, self._passphrase, "the authority's key")
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise InputError("keys.bad", "the file does not hold the authority's key", where=str(path), remedy="restore it from a backup")
        return key


def _row(certificate: x509.Certificate, gone: frozenset[int]) -> CertificateRow:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    kind: Kind = "server" if ExtendedKeyUsageOID.SERVER_AUTH in purposes else "host" if name == HOST_USER else "device"
    serial = certificate.serial_number
    return CertificateRow(name, kind, f"{serial:040x}", certificate.not_valid_after_utc.timestamp(), serial in gone)


def _requested_key(csr: bytes, name: str) -> object:
    """The public key of a signing request that proves possession of its private half. Nothing else in it counts."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.x509.oid import NameOID

    remedy = f"on the board: openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -subj /CN={name}"
    try:
        request = x509.load_pem_x509_csr(csr[:MAX_CSR_BYTES])
        named = [str(attribute.value) for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key, proven = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError("ca.csr", f"this is no certificate signing request ({type(error).__name__})", remedy=remedy) from None
    if not proven:
        raise InputError("ca.csr", "the signing request is not signed by its own key", remedy=remedy)
    if named not in ([], [name]):
        raise InputError("ca.csr", f"the signing request is for {named[0][:63]!r}, not for {name}", remedy=remedy)
    strong = isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048)
    if not strong:
        raise InputError("ca.csr", f"a {type(key).__name__} is not accepted", remedy=remedy)
    return key


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.split(".")
    if len(host) > 253 or not all(0 < len(part) <= 63 and part.replace("-", "a").isalnum() and part.isascii() for part in labels):
        raise InputError("ca.host", f"{host[:80]!r} is no host name or address", where="--server", remedy="for example mqtt.example.org")
    return x509.DNSName(host.lower())


def _builder(subject: x509.Name, issuer: x509.Name, key: object, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(timezone.utc).replace(microsecond=0)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)  # type: ignore[arg-type]  # any of the checked kinds
            .serial_number(x509.random_serial_number()).not_valid_before(now - CLOCK_SLACK).not_valid_after(now + timedelta(days=days)))


def _revocations(certificate: x509.Certificate, key: EllipticCurvePrivateKey, serials: Sequence[str]) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    now = datetime.now(timezone.utc).replace(microsecond=0)
    builder = x509.CertificateRevocationListBuilder().issuer_name(certificate.subject)
    builder = builder.last_update(now - CLOCK_SLACK).next_update(certificate.not_valid_after_utc)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now - CLOCK_SLACK).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, _sha256()).public_bytes(Encoding.PEM)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
                         key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False)


def _name(common: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _sha256() -> SHA256:
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _load_certificate(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> JetfleetError:
    return StorageError("ca.unreadable", f"{path.name} of the certificate authority cannot be read ({type(error).__name__})",
                        where=str(path), remedy="restore the ca folder from a backup")
