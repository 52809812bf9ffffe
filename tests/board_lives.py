"""A whole board's durable life: identity, session, trust, deployments, updates, reports and uploads, all real and in one folder.

What lives outside the board is here too and outlives it: the signed repository, the host that acknowledges reports, the network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from signed_repository import NOW, SignedRepository
from supervised_lives import APP, DiesAt, Life, Shelf
from tuf.api.metadata import TargetFile

from jetfleet_agent.supervisor.bundle_reader import BundleReader
from jetfleet_agent.supervisor.core import begin_session
from jetfleet_agent.supervisor.identity import Identity, verify_ed25519
from jetfleet_agent.supervisor.journal import Journal
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_agent.supervisor.upload_store import UploadStore
from jetfleet_contract.bundle import SPEC
from jetfleet_contract.messages import Deployment, Envelope, Instant, Report, signed_bytes
from jetfleet_contract.messages import decode as decode_message
from jetfleet_contract.trust import message_digest, target_field

CLOCK = Instant(50.0, "boot", NOW + 50.0, wall_trusted=True)


class Site:
    """What the boards of one project see from outside: a shelf of bundles, and metadata that vouches for them and for deltas."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.repository = SignedRepository()
        for release, version in enumerate(shelf.bundles, 1):
            self._vouch(version, release)
        for index in shelf.indexes.values():
            path, custom = f"delta/{index.name}/{index.version}", {"custom": target_field(index.info, {})}
            self.repository.targets.targets[path] = TargetFile(index.info.size, {"sha256": index.index}, path, custom)
        self.repository.commit()
        self.packages = [self.repository.package()]
        self.repository.commit()
        self.packages.append(self.repository.package())

    def _vouch(self, version: str, release: int) -> None:
        target = self.shelf.targets[self.shelf.bundles[version]]
        self.repository.add_bundle(target.manifest, target.name, version, size=target.info.size, blobs=dict(target.blobs))
        file = self.repository.targets.targets[f"bundle/{target.name}/{version}"]
        file.unrecognized_fields["custom"]["release"] = release

    def deployment(self, seq: int, version: str, *, downgrade: bool = False) -> Deployment:
        found = self.shelf.deployment(seq, version)
        return msgspec.structs.replace(found, apps=tuple(msgspec.structs.replace(spec, downgrade=downgrade) for spec in found.apps))


class Board(Life):
    """One start of a board: everything that `run_agent` makes durable, in its order, then whatever `follow` is given to do."""

    def __init__(self, folder: Path, site: Site, *, point: DiesAt | None = None, crashing: tuple[str, ...] = (), good: bool = True,
                 tight: bool = False) -> None:
        point = point or DiesAt()
        self.site = site
        self.records = Journal(folder / "journal")
        point.phase = "trust"
        self.trust = TrustStore(folder / "trust", site.repository.roots[0])
        point.phase = "identity"
        self.identity = Identity.load_or_create(folder / "identity")
        point.phase = "session"
        self.session = begin_session(self.records, CLOCK)
        self.record = msgspec.structs.replace(self.records.board(), session=self.session)
        point.phase = "uploads"
        self.uploads = UploadStore(folder, "board", 8, 1 << 20)
        point.phase = "start"
        super().__init__(folder, site.shelf, point=point, good=good, bundles=self.trust, session=self.session, crashing=crashing,
                         tight=tight)

    def _sign(self, report: Report) -> bytes:
        self.reports.append(report)
        return self.identity.sign("report", report)

    def begin(self) -> None:
        """What the supervisor does first: take up every app, and the deployment that it accepted."""
        self.updater.resume()
        if self.record.deployment is not None:
            self.updater.deploy(self.record.deployment)

    def learn(self) -> None:
        """The metadata arrives, older before newer."""
        self.point.phase = "trust"
        for package in self.site.packages:
            self.trust.update(package, self.now())

    def accept(self, deployment: Deployment) -> None:
        """A signed deployment arrives: verified, remembered, applied."""
        self.point.phase = "deployment"
        data = self.site.repository.deploy(deployment)
        found = self.trust.deployment(data, "board", self.record.seq, self.record.digest, self.now())
        if found.seq != self.record.seq:
            taken = msgspec.structs.replace(self.record, seq=found.seq, digest=message_digest(found), deployment=found)
            self.records.save_board(taken)
            self.record = taken
        self.updater.deploy(found)

    def follow(self, script: tuple[tuple[Deployment, str], ...]) -> None:
        """Deployments, each up to a phase ("idle": to its outcome); what was accepted before this start is not sent again."""
        self.begin()
        if self.trust_is_old():
            self.learn()
        for deployment, until in script:
            if deployment.seq >= self.record.seq:
                self.accept(deployment)
                self.settle(deployment.seq, until)

    def trust_is_old(self) -> bool:
        state = self.trust._state
        return state is None or state.versions["timestamp"] < self.site.repository.timestamp.version

    def acknowledge(self) -> None:
        """The host stores and acknowledges every report that waits."""
        self.point.phase = "acknowledgement"
        for body in self.outbox.due(1e9):
            self.outbox.acknowledged(self.opened(body).id)

    def opened(self, body: bytes) -> Report:
        """A report as the host reads it: signed by the key that this board has now."""
        envelope = msgspec.json.decode(body, type=Envelope)
        signature = envelope.signatures[0]
        assert signature.keyid == self.identity.public_hex
        assert verify_ed25519(self.identity.public_hex, bytes.fromhex(signature.sig), signed_bytes("report", bytes(envelope.signed)))
        return decode_message(bytes(envelope.signed), Report)

    def told(self) -> set[tuple[int, str]]:
        """Outcomes that the host has acknowledged or will be sent: (deployment number, outcome)."""
        waiting = {(report.seq, report.outcome) for report in map(self.opened, self.outbox.due(1e12)) if report.outcome}
        settled = [key.split("/") for key in self.outbox._settled.values()]
        return waiting | {(int(parts[1]), parts[4]) for parts in settled}

    def verify(self) -> str:
        """The version that runs, after its files were hashed and compared with what the metadata vouches for; empty when none."""
        state = self.updater.states.get(APP)
        if state is None or state.champion is None:
            assert not self.running, "something runs that was never committed"
            return ""
        assert self.running == state.champion.bundle, "what runs is not what is committed"
        champion = state.champion
        infos = self.trust.bundle(champion.bundle).every()
        for blob in champion.blobs:
            assert blob in infos
            if self.store.has(blob):
                assert hashlib.sha256(self.store.path(blob).read_bytes()).hexdigest() == blob, "a file of the committed model is damaged"
        needed = {champion.bundle, champion.weights, BundleReader(self.store).manifest(champion.bundle).only(SPEC).blob}
        assert all(self.store.has(blob) for blob in needed), "the committed model could not be started again"
        return state.champion.version
