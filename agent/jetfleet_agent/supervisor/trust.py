"""Trust on the board: which metadata, bundles, deployments and commands count. Fed with bytes, no network here.

python-tuf's `TrustedMetadataSet` does the checks of the TUF client workflow (specification 1.0.33, section 5.3 to 5.6);
this file adds what it leaves to its user: the one-package transport, durable state, version floors that outlive a
damaged state, and clocks that cannot be trusted.

    trust.json   the last accepted package, with the root chain since the pinned root; verified again at every load
    floor.json   versions never to fall below, clock floor, last command
    class-C.json what the builders of a device class vouch for; verified again at every load

Clocks: a board may have none that survives a power cut, and then starts in 1970 or where it was saved last. An untrusted clock never
counts. Policy `floor` judges expiry by the latest of build date and newest signed time: such a board works without a time service, and a
broker that withholds everything newer can show it metadata that has expired since (freeze), but nothing older than it has seen. Policy
`strict` takes nothing new until a time service has set the clock; what runs goes on running.

Rival: `tuf.ngclient.Updater`. It wants HTTP, renames without fsync and forgets versions with its files.
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from jetfleet_agent.durable import need_folder, write_file
from jetfleet_agent.supervisor.identity import verify_ed25519
from jetfleet_agent.supervisor.trust_floor import BUILD_TIME, Floor, load_floor, write_floor
from jetfleet_agent.supervisor.trusted_metadata import TrustState, metadata_set, read_state, root_version, same_keys, translated, tuf_errors
from jetfleet_contract.delegations import (
    MAX_ENGINES,
    DelegationBlob,
    EngineTarget,
    read_engine,
    role_of_class,
)
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.kernel_sets import KernelsTarget
from jetfleet_contract.messages import AppSpec, Command, Deployment, Instant
from jetfleet_contract.trust import (
    BundleTarget,
    DeltaTarget,
    MetaPackage,
    check_deployment,
    decode_package,
    encode_package,
    message_digest,
    unseal,
)

if TYPE_CHECKING:
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

log = logging.getLogger(__name__)

FUTURE_SLACK_S = 86_400
MAX_SEQ = 1 << 53
_ROLES = ("timestamp", "snapshot", "targets")

T = TypeVar("T", bound=msgspec.Struct)


class TrustStore:
    """What this board trusts. One thread only.

    Args:
        folder: durable state, made when missing.
        pinned_root: bytes of the root.json that the board was given.
        clock_policy: see the module.

    Raises:
        InputError: `trust.pinned-root` when that is no valid root metadata.
    """

    def __init__(self, folder: Path, pinned_root: bytes, clock_policy: Literal["floor", "strict"] = "floor") -> None:
        self._folder = folder
        self._strict = clock_policy == "strict"
        self._pinned = pinned_root
        need_folder(folder)
        try:
            self._pinned_version = int(metadata_set(pinned_root, BUILD_TIME).root.version)
        except tuf_errors() as error:
            raise InputError("trust.pinned-root", f"the pinned root is no valid root metadata: {error}",
                             remedy="copy device/root.json from the project folder again") from None
        self._floor = load_floor(folder, hashlib.sha256(pinned_root).hexdigest())
        self._engines: dict[str, dict[str, EngineTarget]] = {}
        self._state: TrustState | None = None
        self._state = self._load_state()
        if self._state is not None and self._state.versions != self._floor.versions:
            try:
                self._raise_floor(self._state)  # the power went between the two writes of `update`
            except StorageError as error:
                log.warning("the version floor is not stored: %s", error.what)

    @property
    def versions(self) -> dict[str, int]:
        """Version by role, empty before the first package."""
        return dict(self._state.versions) if self._state else {}

    @property
    def clock_floor(self) -> float:
        """Seconds since 1970 that are certainly past."""
        return float(self._floor.clock)

    def update(self, package: bytes, now: Instant) -> bool:
        """Verify a package from the meta topic and take it over durably.

        Returns:
            True if anything in it was new.

        Raises:
            MalformedError: `message.*`, `trust.roots`, `trust.malformed`, `trust.target`: no valid package.
            UntrustedError: `trust.root-gap`, `trust.signature`, `trust.rollback`, `trust.mix`, `trust.expired`, `trust.future`,
                `trust.fork`, `trust.metadata`, `trust.clock`. StorageError: `store.write`: give it again. After any other error the old
                state still holds.
        """
        self._check_clock(now)
        fresh = decode_package(package)
        state = self._verify(fresh, self._reference(now))
        self._check_floor(state)
        if _is_trusted(now) and state.signed > self._reference(now) + FUTURE_SLACK_S:
            raise UntrustedError("trust.future", "the metadata was signed in the future", remedy="set the host's clock, or this board's")
        if self._state is not None and self._state.versions == state.versions:
            if self._floor.versions == state.versions:
                return False
            self._raise_floor(state)  # the disk took the metadata the last time, but not its floor
            return True
        write_file(self._folder / "trust.json", encode_package(state.package))
        self._state = state
        self._engines.clear()
        self._raise_floor(state)
        return True

    def bundle(self, manifest_blob: str) -> BundleTarget:
        """The trusted bundle whose manifest has that SHA-256 (hex).

        Raises:
            UntrustedError: `trust.no-metadata`, `trust.unknown-bundle`.
        """
        target = self._trusted().bundles.get(manifest_blob)
        if target is None:
            raise UntrustedError("trust.unknown-bundle", f"no signed target names the bundle {manifest_blob[:16]}...",
                                 remedy="publish it, or wait until the new metadata arrives")
        return target

    def deltas(self, manifest_blob: str) -> DeltaTarget | None:
        """The signed index of deltas that lead to that bundle; None when it was published without. UntrustedError as `bundle`."""
        target = self.bundle(manifest_blob)
        return self._trusted().deltas.get((target.name, target.version))

    def kernels(self, interface: int) -> KernelsTarget | None:
        """The signed set of kernels that agents of this interface launch; None when the host has signed none, or nothing is trusted yet."""
        return self._state.kernels.get(interface) if self._state is not None else None

    # --- what builders of a class vouch for -------------------------------------------------------------

    def delegation(self, device_class: str) -> DelegationBlob | None:
        """The metadata of that class's builders that has to be fetched; None when the newest is here, or there is none."""
        if self._state is None or device_class not in self._state.delegations or self._engines_of(device_class) is not None:
            return None
        return self._state.delegations[device_class]

    def accept_delegation(self, device_class: str, data: bytes, now: Instant) -> None:
        """Verify the metadata that `delegation` asked for and keep it durably.

        Raises:
            UntrustedError: `trust.no-delegation`, `trust.signature` (by no builder of this class), `trust.mix` (not what the snapshot
                names), `trust.expired`, `trust.rollback`. MalformedError: `trust.malformed`,
                `trust.target` (also for engines of other classes).
            StorageError: `store.write`. After any error the old state still holds.
        """
        if device_class not in self._trusted().delegations:
            raise _no_delegation(device_class)
        engines = self._verify_delegated(device_class, data, self._reference(now))
        write_file(self._folder / f"{role_of_class(device_class)}.json", data)
        self._engines[device_class] = engines

    def engine(self, device_class: str, path: str) -> EngineTarget:
        """The engine of that path, ``engine/CLASS/NAME``, that a builder of the class has signed.

        Raises:
            UntrustedError: `trust.no-metadata`, `trust.no-delegation`, `trust.delegation-missing` (not fetched yet),
                `trust.unknown-engine`.
        """
        if device_class not in self._trusted().delegations:
            raise _no_delegation(device_class)
        engines = self._engines_of(device_class)
        if engines is None:
            raise UntrustedError("trust.delegation-missing", f"the metadata of class {device_class}'s builders is not here yet",
                                 remedy="it is fetched by itself once the host can be reached")
        if path not in engines:
            raise UntrustedError("trust.unknown-engine", f"no builder of class {device_class} has signed {path[:120]!r}",
                                 remedy="wait until one has built it, or build it on this board")
        return engines[path]

    def engines(self, device_class: str) -> tuple[EngineTarget, ...]:
        """Every engine that the class's builders have signed; empty where their metadata is not here, or nobody may vouch for the class."""
        if self._state is None or device_class not in self._trusted().delegations:
            return ()
        return tuple((self._engines_of(device_class) or {}).values())

    def builders(self, device_class: str) -> dict[str, str]:
        """Who may vouch for engines of that class: key ids by public key (hex)."""
        return self._state.builders.get(device_class, {}) if self._state is not None else {}

    def uncertified(self, device_class: str) -> frozenset[str]:
        """Names of the class's engines that only their builders have tried."""
        known = self._state.delegations.get(device_class) if self._state is not None else None
        return known.uncertified if known is not None else frozenset()

    def vouched(self, device_class: str) -> bytes | None:
        """The newest metadata of the class's builders, verified; None when it is not here."""
        if self._state is None or self._engines_of(device_class) is None:
            return None
        return (self._folder / f"{role_of_class(device_class)}.json").read_bytes()

    def _engines_of(self, device_class: str) -> dict[str, EngineTarget] | None:
        """What is here of the class and still counts, verified once after each start or new metadata."""
        if device_class not in self._engines:
            try:
                data = (self._folder / f"{role_of_class(device_class)}.json").read_bytes()
                self._engines[device_class] = self._verify_delegated(device_class, data, 0.0)
            except (JetfleetError, OSError):
                return None
        return self._engines[device_class]

    def _verify_delegated(self, device_class: str, data: bytes, reference: float) -> dict[str, EngineTarget]:
        role = role_of_class(device_class)
        try:
            trusted, _ = self._verified(self._trusted().package, reference)
            targets = trusted.update_delegated_targets(data, role, "targets")
        except tuf_errors() as error:
            raise translated(error) from None
        if len(targets.targets) > MAX_ENGINES:
            raise MalformedError("trust.target", f"{len(targets.targets)} engines are over the limit of {MAX_ENGINES}")
        return {path: read_engine(device_class, path, file.hashes.get("sha256", ""), file.custom) for path, file in targets.targets.items()}

    # --- messages of the host ---------------------------------------------------------------------------

    def deployment(self, data: bytes, device: str, last_seq: int, last_digest: str, now: Instant) -> Deployment:
        """Open a deployment's envelope.

        Args:
            last_seq: of the deployment that this board accepted last, 0 for none.
            last_digest: its `message_digest`; empty to skip the comparison.

        Raises:
            MalformedError: `message.*`, and as `check_deployment`. UntrustedError: `trust.no-metadata`, `trust.type`,
            `trust.unknown-key`, `trust.signature`, `trust.device`, `trust.seq`, `trust.seq-lower`, `trust.seq-fork` (an alarm:
            somebody signed two of one number), `trust.mix` (a bundle under another name), `trust.expired`.
        """
        state = self._trusted()
        found = unseal(data, "deployment", Deployment, state.keys.deployment, verify_ed25519)
        check_deployment(found)
        _check_addressee("deployment", found.device, found.seq, device)
        if found.seq < last_seq:
            raise UntrustedError("trust.seq-lower", f"deployment {found.seq} is older than {last_seq}, which this board has accepted")
        if found.seq == last_seq:
            if last_digest and message_digest(found) != last_digest:
                raise UntrustedError("trust.seq-fork", f"two different deployments carry the number {found.seq}",
                                     remedy="find out who else signs for this board; then roll out again, which takes the next number")
            return found  # accepted before: it stays what the board runs, also past its end
        for app in found.apps:
            _check_label(app, state.bundles.get(app.bundle))
        self._check_clock(now)
        self._check_fresh("deployment", found.expires, now)
        if state.expires <= self._reference(now):
            raise UntrustedError("trust.expired", "the metadata on this board has expired, so a new deployment cannot be judged",
                                 remedy="start `jetfleet serve`, which refreshes it")
        return found

    def command(self, data: bytes, device: str, now: Instant) -> Command:
        """Open a command's envelope and remember its number durably, so that it runs at most once.

        Raises:
            As `deployment`, with `trust.seq-lower` also for a repeated number. StorageError: `store.write`.
        """
        found = unseal(data, "command", Command, self._trusted().keys.command, verify_ed25519)
        _check_addressee("command", found.device, found.seq, device)
        if found.seq <= self._floor.command_seq:
            raise UntrustedError("trust.seq-lower", f"command {found.seq} is not newer than {self._floor.command_seq}")
        self._check_clock(now)
        self._check_fresh("command", found.expires, now)
        self._write_floor(msgspec.structs.replace(self._floor, command_seq=found.seq))
        return found

    def from_host(self, data: bytes, kind: str, message: type[T]) -> T:
        """Open an envelope that the host signed as `kind` with a command key. Raises as `jetfleet_contract.trust.unseal`."""
        return unseal(data, kind, message, self._trusted().keys.command, verify_ed25519)

    # --- clocks ----------------------------------------------------------------------------------------

    def _reference(self, now: Instant) -> float:
        """The time to judge by: the wall clock when it is trusted, and never before the floor.

        An untrusted clock does not count at all: 1970 would accept everything, 2040 would refuse everything.
        """
        wall = now.wall if _is_trusted(now) else 0.0
        return min(max(wall, float(self._floor.clock)), float(1 << 34))

    def _check_clock(self, now: Instant) -> None:
        if self._strict and not _is_trusted(now):
            raise UntrustedError("trust.clock", "no time service has set this board's clock, and its policy is strict",
                                 remedy="enable NTP (timedatectl set-ntp true), or set [clock] policy = \"floor\" in the agent's config")

    def _check_fresh(self, kind: str, expires: float, now: Instant) -> None:
        if not expires > self._reference(now):
            raise UntrustedError("trust.expired", f"the {kind} has expired", remedy="roll out again; is the clock of this board right?")

    # --- verification ----------------------------------------------------------------------------------

    def _verify(self, fresh: MetaPackage, reference: float) -> TrustState:
        return read_state(*self._verified(fresh, reference))

    def _verified(self, fresh: MetaPackage, reference: float) -> tuple[TrustedMetadataSet, MetaPackage]:
        try:
            trusted, roots = self._root_chain(fresh, reference)
            self._check_timestamp(trusted, fresh)
            self._check_snapshot(trusted, fresh)
            trusted.update_targets(bytes(fresh.targets))
        except tuf_errors() as error:
            raise translated(error) from None
        return trusted, msgspec.structs.replace(fresh, root=roots)

    def _root_chain(self, fresh: MetaPackage, reference: float) -> tuple[TrustedMetadataSet, tuple[msgspec.Raw, ...]]:
        """Walk from the pinned root over what is known to the newest one offered; a device may have missed any number."""
        known = self._state.package.root if self._state else ()
        trusted = metadata_set(self._pinned, reference)
        chain: list[msgspec.Raw] = []
        for root in (*known, *fresh.root):
            version = root_version(root)
            if version <= trusted.root.version:
                continue
            if version > trusted.root.version + 1:
                raise UntrustedError("trust.root-gap", f"root {version} does not follow root {trusted.root.version}",
                                     remedy="give the board the project's newest device/root.json")
            trusted.update_root(bytes(root))
            chain.append(root)
        return trusted, tuple(chain) or (fresh.root[-1],)

    def _check_timestamp(self, trusted: TrustedMetadataSet, fresh: MetaPackage) -> None:
        from tuf.api.exceptions import EqualVersionNumberError, RepositoryError

        old = self._state
        if old is not None and same_keys(old.keyids, trusted.root):
            try:
                trusted.update_timestamp(bytes(old.package.timestamp))
            except RepositoryError:
                log.debug("the stored timestamp has expired; it still guards against rollback")
        try:
            trusted.update_timestamp(bytes(fresh.timestamp))
        except EqualVersionNumberError:
            if old is None or bytes(old.package.timestamp) != bytes(fresh.timestamp):
                raise UntrustedError("trust.fork", f"two different timestamps carry the version {trusted.timestamp.version}",
                                     remedy="was the project restored from an old copy? Then publish again") from None

    def _check_snapshot(self, trusted: TrustedMetadataSet, fresh: MetaPackage) -> None:
        from tuf.api.exceptions import RepositoryError

        old = self._state
        if old is not None and same_keys(old.keyids, trusted.root):
            try:
                trusted.update_snapshot(bytes(old.package.snapshot), trusted=True)
            except RepositoryError:
                log.debug("the stored snapshot is no longer current; it still guards against rollback")
        trusted.update_snapshot(bytes(fresh.snapshot))

    # --- durable state ---------------------------------------------------------------------------------

    def _load_state(self) -> TrustState | None:
        """The stored package, verified again from the pinned root. Anything wrong with it counts as absent."""
        path = self._folder / "trust.json"
        if not path.exists():
            return None
        try:
            package = msgspec.json.decode(path.read_bytes(), type=MetaPackage)
            state = self._verify(package, 0.0)  # expiry is judged when something new is accepted
            self._check_floor(state)
        except (JetfleetError, msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
            log.warning("stored trust state is unusable, falling back to the pinned root (%s)",
                        getattr(error, "code", type(error).__name__))
            return None
        return state

    def _check_floor(self, state: TrustState) -> None:
        floor = self._floor
        if state.versions["root"] < floor.versions.get("root", 0):
            raise UntrustedError("trust.rollback", f"root {state.versions['root']} is older than {floor.versions['root']}")
        if floor.keyids != state.keyids:
            return
        for role in _ROLES:
            if state.versions[role] < floor.versions.get(role, 0):
                raise UntrustedError("trust.rollback", f"{role} {state.versions[role]} is older than {floor.versions[role]}")

    def _raise_floor(self, state: TrustState) -> None:
        clock = max(self._floor.clock, state.signed)
        self._write_floor(msgspec.structs.replace(self._floor, versions=state.versions, keyids=state.keyids, clock=clock))

    def _write_floor(self, floor: Floor) -> None:
        write_floor(self._folder, floor)
        self._floor = floor

    def _trusted(self) -> TrustState:
        if self._state is None:
            raise UntrustedError("trust.no-metadata", "no signed metadata has arrived yet",
                                 remedy="start `jetfleet serve`, which publishes it")
        return self._state


def _is_trusted(now: Instant) -> bool:
    """True for a clock that says it is right and is not plainly wrong."""
    return now.wall_trusted and math.isfinite(now.wall) and now.wall >= BUILD_TIME


def _check_addressee(kind: str, named: str, seq: int, device: str) -> None:
    if named != device:
        raise UntrustedError("trust.device", f"the {kind} is for another board, {named[:63]!r}")
    if not 0 < seq < MAX_SEQ:
        raise UntrustedError("trust.seq", f"{kind} number {seq} is out of bounds")


def _check_label(app: AppSpec, target: BundleTarget | None) -> None:
    """What the deployment calls a bundle is what the targets role signed it as; a bundle not known yet is judged when it is fetched."""
    if target is not None and (target.name, target.version) != (app.name, app.version):
        raise UntrustedError("trust.mix", f"app {app.app} names {app.name}:{app.version}, but its bundle is {target.name}:{target.version}")


def _no_delegation(device_class: str) -> UntrustedError:
    return UntrustedError("trust.no-delegation", f"nobody may vouch for engines of class {device_class[:63]!r}",
                          remedy="name a builder on the host: jetfleet keys delegate CLASS --device NAME")
