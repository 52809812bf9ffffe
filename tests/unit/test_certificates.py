"""The certificate authority: what it signs, what it refuses to sign, and what its files look like."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typer.testing import CliRunner

from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_host.broker_setup import broker_folder, prepare
from jetfleet_host.brokers import EmbeddedBroker, write_acl
from jetfleet_host.certificates import HOST_USER, CertificateAuthority
from jetfleet_host.cli import app
from jetfleet_host.project import Project

ANYWHERE = "0.0.0.0"  # noqa: S104
WEAK_BITS = 1024
STRANGE = b"""-----BEGIN CERTIFICATE REQUEST-----
MIG7MGICAQAwADBZMBMGByqeSM49AgEGCCqGSM49AwEHA0IABDDF76D1cUJsWaJq
aTiYP6hrk6wFokambiPPedwqJYqbaVZjwEB0oZ3qsxFVUJeLiXhEgJfP4jf/n0WV
0pTDVfKgADAKBggqhkjOPQQDAgNJADBGAiEAjPURdu7jSO/1UqIwC+Pm8uzzb6SQ
8l4jEEJ8nNdwkXECIQDsb9YTGQuLb2VYYHiEyRdk79ZYMF2vUfHQewLLBdXoLA==
-----END CERTIFICATE REQUEST-----
"""  # found by every_decoder.py: one digit of the key's algorithm changed


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", "fleet")


def request(name: str | None, key: Any) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name is not None else [])
    wanted = x509.BasicConstraints(ca=True, path_length=None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wanted, critical=True)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()).public_bytes(Encoding.PEM)


def code_of(call: Any) -> str:
    with pytest.raises(JetfleetError) as caught:
        call()
    assert caught.value.remedy
    return caught.value.code


def test_names_purposes_and_lifetimes(authority: CertificateAuthority) -> None:
    made = {"device": authority.issue_device("gate-7"), "server": authority.issue_server(["mqtt.example.org", "10.0.0.1", "[::1]"]),
            "host": authority.issue_host()}
    root = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    names = {"device": "gate-7", "server": "mqtt.example.org", "host": HOST_USER}
    for kind, issued in made.items():
        certificate = x509.load_pem_x509_certificate(issued.certificate)
        certificate.verify_directly_issued_by(root)
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == names[kind]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if kind == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert certificate.not_valid_after_utc < root.not_valid_after_utc
    server = x509.load_pem_x509_certificate(made["server"].certificate)
    alternative = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["mqtt.example.org"]
    assert [str(address) for address in alternative.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]


def test_no_board_can_have_the_hosts_name(authority: CertificateAuthority) -> None:
    for name in (HOST_USER, "gate 7", "gate+7", "#", "../x", ""):
        with pytest.raises(MalformedError):
            authority.issue_device(name)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate(),
                                 rsa.generate_private_key(65537, 2048)], ids=lambda key: type(key).__name__)
def test_a_request_gives_its_key_and_nothing_else(authority: CertificateAuthority, key: Any) -> None:
    for name in ("gate-7", None):
        issued = authority.issue_device("gate-7", request(name, key))
        certificate = x509.load_pem_x509_certificate(issued.certificate)
        assert issued.key == b""
        assert certificate.public_key() == key.public_key()
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_requests_that_are_refused(authority: CertificateAuthority) -> None:
    good = request("gate-7", ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    bad = [b"", b"x" * 100_000, STRANGE, good[:-40], forged, request("gate-8", ec.generate_private_key(ec.SECP256R1())),
           request("gate-7", rsa.generate_private_key(65537, WEAK_BITS)), request("gate-7", dsa.generate_private_key(2048))]
    for csr in bad:
        assert code_of(lambda data=csr: authority.issue_device("gate-7", data)) == "ca.csr"
    assert authority.issued() == ()


def test_revocation_is_of_every_certificate_of_a_name(authority: CertificateAuthority) -> None:
    authority.issue_device("gate-7")
    authority.issue_device("gate-7")
    authority.issue_device("gate-8")
    assert len(authority.revoke("gate-7")) == 2
    authority.revoke("gate-8")
    listed = x509.load_pem_x509_crl(authority.revocation_file.read_bytes())
    assert len(list(listed)) == 3
    root = x509.load_pem_x509_certificate(authority.certificate_file.read_bytes())
    assert listed.is_signature_valid(root.public_key())  # type: ignore[arg-type]
    assert listed.next_update_utc is not None
    assert listed.next_update_utc > datetime.now(timezone.utc) + timedelta(days=1000)  # an expired list locks everybody out
    assert {(row.name, row.revoked) for row in authority.issued()} == {("gate-7", True), ("gate-8", True)}
    assert authority.revoked_devices() == ("gate-7", "gate-8")
    assert code_of(lambda: authority.revoke("gate-7")) == "ca.unknown"
    authority.issue_device("gate-7")
    assert authority.revoked_devices() == ("gate-8",)


def test_files_and_passphrase(tmp_path: Path) -> None:
    made = CertificateAuthority.create(tmp_path / "ca", "fleet", b"correct horse")
    key = tmp_path / "ca" / "ca.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    made.issue_device("gate-7")
    for passphrase in (None, b"wrong"):
        assert code_of(lambda p=passphrase: CertificateAuthority.open(tmp_path / "ca", p).issue_device("x")) == "keys.passphrase"
    assert code_of(lambda: CertificateAuthority.create(tmp_path / "ca", "again")) == "ca.exists"
    assert code_of(lambda: CertificateAuthority.open(tmp_path / "nowhere")) == "ca.missing"
    key.chmod(0o640)
    assert code_of(lambda: CertificateAuthority.open(tmp_path / "ca", b"correct horse").issue_device("x")) == "keys.mode"
    (tmp_path / "ca" / "ca.pem").write_bytes(b"rotten")
    assert code_of(lambda: CertificateAuthority.open(tmp_path / "ca")) == "ca.unreadable"


@pytest.mark.parametrize("hosts", [[], ["a b"], ["x/y"], ["-" * 64], ["ü.example"], ["a..b"], ["h"] * 40])
def test_no_host_names(authority: CertificateAuthority, hosts: list[str]) -> None:
    assert code_of(lambda: authority.issue_server(hosts)) == "ca.host"


def test_the_brokers_folder(tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    assert code_of(lambda: prepare(project, bind="127.0.0.1")) == "ca.missing"
    CertificateAuthority.create(project.dir / "ca", "fleet")
    for anywhere in (ANYWHERE, "::", "[::]"):
        assert code_of(lambda bind=anywhere: prepare(project, bind=bind)) == "broker.hosts"
    prepare(project, bind="192.0.2.7")
    folder = broker_folder(project)
    first = (folder / "server.pem").read_bytes()
    assert x509.load_pem_x509_certificate(first)
    config = prepare(project, bind=ANYWHERE, port=9000).read_text()
    assert (folder / "server.pem").read_bytes() == first
    for line in (f"listener 9000 {ANYWHERE}", "require_certificate true", "allow_anonymous false", f"crlfile {folder}/crl.pem"):
        assert line in config.splitlines()
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    prepare(project, bind=ANYWHERE, hosts=["mqtt.example.org"])
    assert (folder / "server.pem").read_bytes() != first


def test_the_acl_binds_every_topic_of_a_board_to_its_name(tmp_path: Path) -> None:
    text = write_acl(tmp_path / "acl", HOST_USER, ["gone"]).read_text()
    assert text.index("user gone\ntopic deny jf/1/#") < text.index("pattern")
    rules = [line.split(maxsplit=2) for line in text.splitlines() if line.startswith("pattern")]
    writes = [topic for _, access, topic in rules if access == "write"]
    assert all("%u" in topic for topic in writes)
    assert {topic for _, access, topic in rules if access == "read" and "%u" not in topic} == {
        "jf/1/meta", "jf/1/b/+/round/#", "jf/1/b/+/c/#"}


@pytest.mark.parametrize("bind", [ANYWHERE, "::", "192.0.2.1", "mqtt.example.org", ""])
def test_the_embedded_broker_is_for_this_machine_only(bind: str) -> None:
    assert code_of(lambda: EmbeddedBroker(0, bind)) == "broker.open"
    result = CliRunner().invoke(app, ["broker", "--bind", bind])
    assert isinstance(result.exception, JetfleetError)
    assert result.exception.code == "broker.open"


def test_serve_refuses_an_embedded_broker_beyond_loopback(tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    (project.dir / "jetfleet.toml").write_text('[broker]\nembedded = true\nhost = "0.0.0.0"\n')
    result = CliRunner().invoke(app, ["serve", "--dir", str(project.dir)])
    assert isinstance(result.exception, JetfleetError)
    assert result.exception.code == "broker.open"


def test_commands(tmp_path: Path) -> None:
    folder = str(tmp_path / "fleet")
    Project.init(tmp_path / "fleet")
    (tmp_path / "pass").write_text("correct horse\n")
    opened = ["--passphrase-file", str(tmp_path / "pass")]

    def run(*arguments: str, fails: str = "") -> Any:
        result = CliRunner().invoke(app, ["broker", *arguments, "--dir", folder, "--json"])
        assert getattr(result.exception, "code", "") == fails if fails else result.exit_code == 0, result.output
        return None if fails else json.loads(result.output)

    run("cert", "--device", "gate-7", fails="ca.missing")
    run("ca", "init", *opened)
    run("cert", "--device", "gate-7", fails="keys.passphrase")
    run("cert", fails="ca.whom")
    run("cert", "--host", "--device", "x", fails="ca.whom")
    run("cert", "--host", "--csr", "x", fails="ca.whom")
    run("cert", "--device", "x", "--csr", str(tmp_path / "none"), *opened, fails="ca.csr")
    made = run("cert", "--device", "gate-7", *opened)
    assert Path(made["key"]).stat().st_mode & 0o777 == 0o600
    assert Path(made["ca"]).read_bytes() == (tmp_path / "fleet/ca/ca.pem").read_bytes()
    (tmp_path / "csr").write_bytes(request("gate-8", ec.generate_private_key(ec.SECP256R1())))
    assert run("cert", "--device", "gate-8", "--csr", str(tmp_path / "csr"), "--out", str(tmp_path / "g8"), *opened)["key"] == ""
    run("cert", "--server", "mqtt.example.org", "--out", str(tmp_path / "server"), *opened)
    assert "listener 8883 127.0.0.1" in Path(run("mosquitto", "--bind", "127.0.0.1", *opened)["config"]).read_text()
    assert run("revoke", "gate-7", *opened)["written"]
    assert "user gate-7" in (tmp_path / "fleet/broker/acl").read_text()
    run("revoke", "gate-9", *opened, fails="ca.unknown")
    assert {(row["name"], row["revoked"]) for row in run("ca", "list")} == {
        ("gate-7", True), ("gate-8", False), ("mqtt.example.org", False), ("127.0.0.1", False), (HOST_USER, False)}
    for command in (["ca", "init"], ["ca", "list"], ["cert"], ["revoke"], ["mosquitto"], []):
        assert "Example" in CliRunner().invoke(app, ["broker", *command, "--help"]).output
