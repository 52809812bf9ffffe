"""Turns what boards say about engines into elections, certificates and signed metadata. Used by serve's control thread.

Each word is signed by its board; each state of a key is in the database before a command goes out; commands travel as all others do. What a
builder gives counts only as metadata that its class's delegation covers, over bytes that have the signed digest. Builders of one class
work one after the other, because each signs on top of the other's version.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.orm import Session

from jetfleet_contract import engine_work as machine
from jetfleet_contract import topics
from jetfleet_contract.bundle import PROBE_INDEX, ProbeSet, decode_manifest
from jetfleet_contract.delegations import MAX_DELEGATED_BYTES, EngineTarget, class_of_role, engine_path, read_engine
from jetfleet_contract.engines import MAX_WORD_BYTES, EngineWord, Passport, check_passport, engine_name, key_of
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Instant, decode, encode

from . import intake
from .blob_files import copy_over
from .collector import Incoming
from .delegations import accept, certify, delegations_of, engines_of, read_delegated, uncertified_of
from .intake import VerifyDevice
from .project import Project
from .publish import read_small
from .store import commands, fleet, uploads
from .store import engines as rows
from .store.database import Transactions
from .store.models import UploadRow
from .upload_files import UploadFiles

POLL_S = 1.0
COMMAND_WAIT_S = 60.0
MAX_PROBE_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class _Given(NamedTuple):
    """Metadata of a class's builder: the engines that are new in it, blob and passport, and where their bytes, and timings', lie."""

    device_class: str
    data: bytes
    engines: tuple[tuple[str, Passport], ...]
    sources: tuple[tuple[EngineTarget, Path], ...]

    @property
    def names(self) -> frozenset[str]:
        """Of the engines, as paths have them."""
        return frozenset(engine_name(key_of(passport)) for _, passport in self.engines)


class EngineDriver:
    """See the module.

    Args:
        verify: opens what a board signed with its pinned key. copier: where engines are copied; a thread of its own when None.
    """

    def __init__(self, project: Project, database: Transactions, files: UploadFiles, verify: VerifyDevice,
                 copier: Executor | None = None) -> None:
        self._project = project
        self._database = database
        self._files = files
        self._verify = verify
        self._taken = 0
        self._done: set[int] = set()
        self._due = 0.0
        self._vouching: Mapping[str, frozenset[str]] = {}
        self._vouched_until = 0.0
        self._sign: set[str] = set()
        self._copier = copier or ThreadPoolExecutor(1, thread_name_prefix="engines")
        self._copies: dict[int, tuple[_Given, Future[None]]] = {}

    def close(self) -> None:
        """Wait for the copy under way; what it was for is taken up at the next start."""
        self._copier.shutdown(wait=True, cancel_futures=True)

    # --- what boards say --------------------------------------------------------------------------------------

    def on_word(self, message: Incoming, now: Instant) -> None:
        """Take a word. What is forged, malformed or of another class is counted and kept in part.

        Raises:
            StorageError: `store.database`: a board that needs an engine asks again.
        """
        try:
            self._heard(message, now)
        except (MalformedError, UntrustedError) as error:
            with self._database.session() as session:
                fleet.save_rejected(session, message.topic, message.payload, error.code, intake.clean(error.what, 500), message.at)

    def _heard(self, message: Incoming, now: Instant) -> None:
        device = topics.device_of(message.topic)
        if len(message.payload) > 2 * MAX_WORD_BYTES:
            raise MalformedError("message.large", f"a word of {len(message.payload)} bytes is over the limit", where=message.topic)
        with self._database.session() as session:
            word = checked(self._verify(message.payload, uploads.key_of(session, device), "engine", EngineWord), device)
            device_class = rows.class_of(session, device)
            work = rows.find(session, device_class, word.key)
            if work is None:
                if word.what != "need":
                    return
                if rows.count(session, device_class) >= rows.MAX_KEYS_A_CLASS:
                    raise MalformedError("engine.full", f"class {device_class} has {rows.MAX_KEYS_A_CLASS} engines: withdraw some")
                work = machine.Work(device_class, word.key, word.passport)
            self._step(session, work, self._event(word), now)
        self._publish()

    def _event(self, word: EngineWord) -> machine.Event:
        if word.what == "need":
            return machine.Needed(word.device)
        if word.what == "failed":
            return machine.Failed(word.device, word.code or "engine.failed", intake.clean(word.detail, 300))
        if word.what == "unfit":
            made = machine.Failed if word.code.startswith(machine.OWN_REASONS) else machine.Unfit
            return made(word.device, word.code or "engine.unfit", intake.clean(word.detail, 300))
        if word.what == "fit":
            return self._fitting(word)
        # "built" too: its metadata, which comes beside it, is what counts
        return machine.Heard(word.device, word.percent, word.p50_ms, intake.clean(word.under, 200))

    def _fitting(self, word: EngineWord) -> machine.Event:
        """The board says that it fits; whether it agrees enough with the reference's answers is for the bundle to say."""
        try:
            manifest = decode_manifest(read_small(self._project.blobs, word.passport.subject))
            probe = decode(read_small(self._project.blobs, manifest.only(PROBE_INDEX).blob), ProbeSet, limit=MAX_PROBE_BYTES)
        except (JetfleetError, OSError) as error:
            return machine.Failed(word.device, "engine.no-bundle", f"its bundle cannot be read here: {error}")
        if word.agreement < probe.min_agreement:
            return machine.Unfit(word.device, "engine.disagrees", f"agreement {word.agreement:.3f}, the bound is {probe.min_agreement:.3f}")
        return machine.Fit(word.device, word.agreement, word.p50_ms, intake.clean(word.under, 200))

    # --- what time, commands and uploads bring ----------------------------------------------------------------

    def poll(self, now: Instant) -> None:
        """Take what builders gave, hear what became of commands, let time pass. Raises StorageError `store.database`."""
        if now.mono < self._due:
            return
        self._due = now.mono + POLL_S
        self._take_uploads(now)
        with self._database.reading() as session:
            idle = not rows.open_works(session)
        if not idle:
            with self._database.session() as session:
                for work in rows.open_works(session):
                    self._step(session, work, self._outcome(session, work) or machine.Tick(), now)
        self._publish()

    def _outcome(self, session: Session, work: machine.Work) -> machine.Event | None:
        """The board that was asked would not, or could not be asked."""
        request = rows.request_of(session, work)
        if request is None or request.state not in commands.ENDED or not request.code:
            return None
        worker = work.by if work.state == "building" else work.second if work.state == "certifying" else ""
        return machine.Failed(worker, request.code, intake.clean(request.detail, 300)) if request.device == worker else None

    def _step(self, session: Session, work: machine.Work, event: machine.Event, now: Instant) -> None:
        busy = rows.is_building(session, work.device_class, work.key)
        boards = rows.boards(session, work.device_class, self._builders(now).get(work.device_class, frozenset()), busy=busy)
        after, effects = machine.step(work, event, boards, now.wall)
        if after != work or rows.find(session, work.device_class, work.key) is None:
            rows.save(session, after, now.wall)
        if after.state != work.state:
            _log.info("engine %s of %s (%s): %s%s", work.key[:12], work.device_class, work.passport.variant, after.state,
                      f": {after.detail}" if after.detail else "")
        for effect in effects:
            match effect:
                case machine.AskToBuild():
                    self._ask(session, after, effect.device, "engine-build", now)
                case machine.AskToTry():
                    self._ask(session, after, effect.device, "engine-certify", now)
                case machine.Certify() | machine.Withdraw():
                    self._sign.add(work.device_class)

    def _ask(self, session: Session, work: machine.Work, device: str, op: str, now: Instant) -> None:
        args = {"key": work.key, "passport": encode(work.passport).decode()}
        rows.asked(session, work, commands.ask(session, device, op, args, COMMAND_WAIT_S, now.wall))

    def _builders(self, now: Instant) -> Mapping[str, frozenset[str]]:
        """Who vouches for each class; the metadata is parsed once a poll, however many keys are open."""
        if now.mono >= self._vouched_until:
            self._vouching = {one.device_class: frozenset(one.keys) for one in delegations_of(self._project)}
            self._vouched_until = now.mono + POLL_S
        return self._vouching

    def _publish(self) -> None:
        """Say in the snapshot which engines are tried; after the database has it, and again at the next poll when it fails."""
        for device_class in sorted(self._sign):
            certify(self._project, device_class, self._untried(device_class))
            self._sign.discard(device_class)

    def _untried(self, device_class: str) -> frozenset[str]:
        with self._database.reading() as session:
            return rows.untried(session, device_class, uncertified_of(self._project, device_class))

    # --- what builders give -----------------------------------------------------------------------------------

    def _take_uploads(self, now: Instant) -> None:
        """Metadata is small and may be whole before its engine is: it waits for what else is under way for the same command."""
        with self._database.reading() as session:
            given, under_way = rows.uploads_after(session, self._taken), rows.under_way(session)
        waits = False
        for row in given:
            if (row.device, row.command) in under_way:
                waits = True
                continue
            if row.id not in self._done and class_of_name(row.name) is not None and not self._take(row, now):
                waits = True
                continue
            self._done.add(row.id)
            if not waits:
                self._taken = row.id
                self._done.clear()

    def _take(self, row: UploadRow, now: Instant) -> bool:
        """False as long as its engines are being copied: seconds for a large one, which no board has to wait for."""
        try:
            if row.id not in self._copies:
                given = self._given(row)
                self._copies[row.id] = given, self._copier.submit(self._copy, given)
            given, copied = self._copies[row.id]
            if not copied.done():
                return False
            del self._copies[row.id]
            copied.result()
            accept(self._project, given.device_class, given.data, self._untried(given.device_class) | given.names)
        except StorageError:
            raise
        except JetfleetError as error:
            _log.warning("%s: what it signed for engines is not taken: %s [%s]", row.device, error.what, error.code)
            self._refused(row, error, now)
            return True
        with self._database.session() as session:
            for blob, passport in given.engines:
                key = key_of(passport)
                work = rows.find(session, given.device_class, key) or machine.Work(given.device_class, key, passport)
                self._step(session, work, machine.Built(row.device, blob, passport), now)
        return True

    def _refused(self, row: UploadRow, error: JetfleetError, now: Instant) -> None:
        """The build that it answers has failed. What answers an earlier command, or is looked at again after a restart, fails nothing."""
        with self._database.session() as session:
            for work in rows.open_works(session):
                request = rows.request_of(session, work)
                if work.state == "building" and request is not None and (request.device, request.seq) == (row.device, row.command):
                    self._step(session, work, machine.Failed(row.device, error.code, error.what), now)

    def _given(self, row: UploadRow) -> _Given:
        """What the metadata that a builder gave says is new, checked as far as that needs no bytes of engines."""
        device_class = class_of_name(row.name) or ""
        with self._database.reading() as session:
            of_board, again = rows.class_of(session, row.device), rows.in_hand(session, device_class, row.device)
        if of_board != device_class:
            raise UntrustedError("engine.foreign-class", f"a board of class {of_board} gave engines of class {device_class}")
        data = self._read(row, MAX_DELEGATED_BYTES)
        known = {target.path: target.blob for owner, target in engines_of(self._project) if owner == device_class}
        targets = [read_engine(device_class, path, file.hashes.get("sha256", ""), file.custom)
                   for path, file in read_delegated(device_class, data).signed.targets.items()]
        dropped = sorted(set(known) - {target.path for target in targets})
        if dropped:
            raise UntrustedError("engine.dropped", f"the metadata leaves out {len(dropped)} engines of before, such as {dropped[0]}")
        fresh = [target for target in targets if known.get(target.path) != target.blob or target.path.rpartition("/")[2] in again]
        engines = tuple((target.blob, _checked_passport(device_class, target, row.device)) for target in fresh if target.timing is None)
        return _Given(device_class, data, engines, tuple((target, self._bytes_of(target, row.device)) for target in fresh))

    def _bytes_of(self, target: EngineTarget, device: str) -> Path:
        with self._database.reading() as session:
            row = rows.uploaded(session, device, target.blob)
        if row is None:
            raise UntrustedError("engine.missing", f"the bytes of {target.path} were not given")
        path = self._files.path(device, target.blob)
        self._check_size(path, row, self._project.settings.uploads.bounds.most["engine"])
        return path

    def _copy(self, given: _Given) -> None:
        """The engines among the published blobs: whole, with the signed digest, size and chunk table. In the copier's thread."""
        for target, source in given.sources:
            tabled = copy_over(self._project.blobs, source, target.blob, target.info.chunk_size)
            if tabled.blob != target.blob or tabled.info != target.info:
                raise UntrustedError("engine.flipped", f"the bytes of {target.path} are not what was signed")

    def _read(self, row: UploadRow, limit: int) -> bytes:
        path = self._files.path(row.device, row.blob)
        self._check_size(path, row, limit)
        return path.read_bytes()

    def _check_size(self, path: Path, row: UploadRow, limit: int) -> None:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError("engine.unreadable", f"the upload {row.name} of {row.device} cannot be read: {error.strerror}") from None
        if size > limit:
            raise MalformedError("message.large", f"{row.name} of {row.device} is over the limit of {limit} bytes")


def checked(word: EngineWord, device: str) -> EngineWord:
    """A word of that board, within bounds. MalformedError `message.device`, `engine.key`, and as `check_passport`."""
    if word.device != device:
        raise MalformedError("message.device", f"a word of {word.device[:80]!r} came on the topic of {device}")
    check_passport(word.passport)
    if key_of(word.passport) != word.key:
        raise MalformedError("engine.key", "the key is not that of the passport")
    numbers = (word.percent, word.agreement, word.p50_ms, word.at)
    if not all(0.0 <= number < 1e12 for number in numbers) or word.agreement > 1.0 or len(word.code) > 63 or not word.code.isprintable():
        raise MalformedError("message.bounds", "a number or a code of an engine's word is out of bounds")
    return word


def _checked_passport(device_class: str, target: EngineTarget, device: str) -> Passport:
    passport = target.passport
    if passport is None:
        raise UntrustedError("engine.no-passport", f"{target.path} has no passport")
    if passport.builder != device or target.path != engine_path(device_class, engine_name(key_of(passport))):
        raise UntrustedError("engine.passport", f"the passport of {target.path} is of another engine, or of another builder")
    return passport


def class_of_name(name: str) -> str | None:
    """The class whose metadata an upload of that name is, None when it is an engine."""
    return class_of_role(name.removesuffix(".json")) if name.endswith(".json") else None
