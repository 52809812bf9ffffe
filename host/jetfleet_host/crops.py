"""Takes in what boards are not sure of: opens each crop, checks it, has the full-precision model answer, signs the answer, keeps what may
be kept.

Called from serve's control thread; the model runs in a process of its own (`crop_answers`). What comes is judged by the deployment that
this host gave the board, not by what the board says of itself: an app whose policy allows no purpose is not listened to.
"""

from __future__ import annotations

import hashlib
import logging
import queue
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from jetfleet_contract import pacing, topics
from jetfleet_contract.bundle import ModelSpec, TaskSpec
from jetfleet_contract.crops import MAX_CROP_BYTES, Answer, Crop, CropAnswer, CropJob, Note, check_crop, unpack
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import MAX_MESSAGE_BYTES, AppConfig, Instant
from jetfleet_contract.sealing import Sealed

from . import intake
from .collector import Incoming
from .crop_answers import Answering, Work
from .crop_keys import CropKeys
from .deployments import app_of
from .fair_queue import FairQueue
from .harvest import HarvestFiles
from .intake import VerifyDevice
from .publish import find_bundle, published, read_spec
from .store import fleet, harvest, journal
from .store import uploads as devices
from .store.database import Transactions
from .store.models import HardExample

if TYPE_CHECKING:
    from .project import Project

MAX_EACH = 8
MAX_SEEN = 2048
MAX_BOARDS = 10_000
MAX_MODELS = 64
PRUNE_ROWS = 500
PRUNE_S = 30.0
REFUSAL_S = 1.0

_log = logging.getLogger(__name__)


class Link(Protocol):
    """What is used of an MqttLink."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class CropBounds(msgspec.Struct, frozen=True):
    """`per_minute` crops of a board, `waiting` crops in all, `keep_bytes` of pictures in the hard-example set; `threads` of the model."""

    per_minute: int
    waiting: int
    keep_bytes: int
    threads: int = 0


class _Model(msgspec.Struct, frozen=True):
    """What answers: a file, its task, and its name for people."""

    path: str
    task: TaskSpec
    name: str


class _Taken(msgspec.Struct, frozen=True):
    """A crop that was let in."""

    crop: Crop
    note: Note
    jpeg: bytes
    answer: bool
    keep: bool
    model: _Model


class _Board:
    """What is remembered of a board: its numbers, and its pace."""

    def __init__(self, per_minute: int, mono: float) -> None:
        self.seen: OrderedDict[int, None] = OrderedDict()
        self.floor = 0
        self.pace = pacing.starting(per_minute / 60.0, per_minute / 60.0, max(1.0, per_minute / 4.0), mono)


class Crops:
    """See the module.

    Args:
        sign: gives the envelope of an answer. woken: called from another thread when `tick` has work.
    """

    def __init__(self, project: Project, database: Transactions, link: Link, verify: VerifyDevice, sign: Callable[[Answer], bytes],
                 bounds: CropBounds, woken: Callable[[], None]) -> None:
        self._project = project
        self._database = database
        self._link = link
        self._verify = verify
        self._sign = sign
        self._bounds = bounds
        self._woken = woken
        self._keys = CropKeys(project.keys_dir)
        self._files = HarvestFiles(project.dir / "harvest")
        self._boards: dict[str, _Board] = {}
        self._models: dict[tuple[str, str], tuple[Path, ModelSpec]] = {}
        self._queue: FairQueue[Work] = FairQueue(bounds.waiting, MAX_EACH)
        self._answers: queue.SimpleQueue[tuple[Work, CropAnswer]] = queue.SimpleQueue()
        self._answering = Answering(self._queue, self._answered)
        self._started = False
        self._prune_at = 0.0
        self._refused: dict[str, float] = {}

    def close(self) -> None:
        """End the model's process."""
        self._answering.stop()

    # --- what comes -------------------------------------------------------------------------------------------

    def on_crop(self, message: Incoming, now: Instant) -> None:
        """One crop as it came. Bad ones are counted and kept in the list of refused messages. Raises StorageError."""
        try:
            taken = self._take(message, now)
        except (MalformedError, UntrustedError, InputError) as error:
            self._refuse(message, error, now)
            return
        note = taken.note
        job = CropJob(taken.crop.id, taken.model.path, taken.model.task, note.canvas, ((note.window, taken.jpeg),), self._bounds.threads)
        work = Work(job, taken.crop.device, (note.app, note.source, str(note.frame), note.bundle), taken)
        if not self._started:
            self._started = True
            self._answering.start()
        lost = self._queue.put(taken.crop.device, work, urgent=taken.answer)
        if lost is not None and isinstance(lost.subject, _Taken):
            self._reply(lost.subject.crop, Answer(lost.subject.crop.device, lost.subject.crop.id, code="crop.busy"))

    def _refuse(self, message: Incoming, error: JetfleetError, now: Instant) -> None:
        """Said and stored, but not more often than `REFUSAL_S` for one reason: strangers must not fill the log, nor keep the disk busy."""
        if now.mono < self._refused.get(error.code, now.mono):
            return
        self._refused[error.code] = now.mono + REFUSAL_S
        _log.warning("a crop is refused: %s [%s]", error.what, error.code)
        with self._database.session() as session:
            fleet.save_rejected(session, message.topic, message.payload, error.code, intake.clean(error.what, 500), message.at)

    def _take(self, message: Incoming, now: Instant) -> _Taken:
        device = topics.device_of(message.topic)
        if len(message.payload) > MAX_CROP_BYTES:
            raise MalformedError("crop.large", f"a crop of {len(message.payload)} bytes is over the limit of {MAX_CROP_BYTES}")
        with self._database.reading() as session:
            key = devices.key_of(session, device)
            deployment = journal.deployment_of(session, device)
        if not key:
            raise UntrustedError("device.unknown", f"board {device} has not introduced itself by a birth")
        crop = check_crop(self._verify(message.payload, key, "crop", Crop), device)
        board = self._board(device, now)
        if crop.id <= board.floor or crop.id in board.seen:
            raise UntrustedError("crop.replayed", f"crop {crop.id} of board {device} came before")
        board.pace = pacing.refill(board.pace, now.mono)
        if board.pace.tokens < 1.0:
            raise UntrustedError("crop.rate", f"board {device} gives more than {self._bounds.per_minute} crops a minute",
                                 remedy="raise crops_per_minute in jetfleet.toml: [harvest]")
        board.pace = pacing.spend(board.pace, 1)
        app = app_of(deployment, crop.app)
        purposes = app.config.privacy.purposes if app is not None and app.config.cascade is not None else ()
        answer, keep = crop.answer and "cascade" in purposes, crop.keep and "harvest" in purposes
        if app is None or not (answer or keep):
            raise UntrustedError("crop.not-allowed", f"no policy of ours lets a picture of {crop.app} on board {device} come here")
        note, jpeg = unpack(self._keys.open(Sealed(crop.enc, crop.box), device=device, app=crop.app, number=crop.id))
        if note.app != crop.app:
            raise MalformedError("crop.bad", f"a crop of {crop.app} says that it is of {note.app}")
        self._remember(board, crop.id)
        return _Taken(crop, note, jpeg, answer, keep, self._model(note.bundle, app.config))

    def _board(self, device: str, now: Instant) -> _Board:
        board = self._boards.get(device)
        if board is None:
            while len(self._boards) >= MAX_BOARDS:
                del self._boards[next(iter(self._boards))]
            board = self._boards[device] = _Board(self._bounds.per_minute, now.mono)
        return board

    @staticmethod
    def _remember(board: _Board, number: int) -> None:
        board.seen[number] = None
        while len(board.seen) > MAX_SEEN:
            board.floor = max(board.floor, board.seen.popitem(last=False)[0])

    def _model(self, bundle: str, config: AppConfig) -> _Model:
        """InputError `crop.model`, `models.unknown`."""
        wanted = config.cascade.model if config.cascade else ""
        key = (bundle if not wanted else "", wanted)
        if key not in self._models:
            while len(self._models) >= MAX_MODELS:
                del self._models[next(iter(self._models))]
            self._models[key] = self._found(bundle, wanted)
        path, spec = self._models[key]
        task = spec.task if wanted else msgspec.structs.replace(spec.task, options={**spec.task.options, **config.options})
        return _Model(str(path), task, f"{spec.name}:{spec.version}")

    def _found(self, bundle: str, wanted: str) -> tuple[Path, ModelSpec]:
        if wanted:
            name, _, version = wanted.partition(":")
            target = find_bundle(self._project, name, version)
        else:
            every = {target.manifest: target for target in published(self._project)}
            if bundle not in every:
                raise InputError("crop.model", f"bundle {bundle[:16]} is not published here", remedy="publish it again")
            target = every[bundle]
        spec = read_spec(self._project, target)
        plain = {variant.precision: variant for variant in spec.variants if variant.layout == "plain"}
        variant = plain.get("fp32") or plain.get("fp16")
        if variant is None:
            raise InputError("crop.model", f"{spec.name}:{spec.version} has no variant in full precision",
                             remedy="name a model that has one: [APP.cascade] model = \"NAME:VERSION\"")
        return self._project.blobs.path(variant.digest.partition(":")[2]), spec

    # --- what goes --------------------------------------------------------------------------------------------

    def _answered(self, work: Work, answer: CropAnswer) -> None:
        """The answering thread."""
        if isinstance(work.subject, _Taken) and work.subject.keep:
            try:
                self._files.put(hashlib.sha256(work.subject.jpeg).hexdigest(), work.subject.jpeg)
            except StorageError as error:
                _log.error("%s", error.diagnostics())
                return  # not acknowledged: the board gives it again
        self._answers.put((work, answer))
        self._woken()

    def tick(self, now: Instant) -> None:
        """Send and keep what is answered; keep the set within its bound. Raises StorageError."""
        while not self._answers.empty():
            work, answer = self._answers.get()
            if isinstance(work.subject, _Taken):
                self._finish(work.subject, answer, now)
        if now.mono >= self._prune_at:
            self._prune_at = now.mono + PRUNE_S
            self._prune()

    def _finish(self, taken: _Taken, answer: CropAnswer, now: Instant) -> None:
        if answer.code:
            _log.warning("a crop of %s is not answered: %s [%s]", taken.crop.device, answer.detail, answer.code)
        if taken.answer:  # before it is kept: somebody waits
            self._reply(taken.crop, Answer(taken.crop.device, taken.crop.id, taken.model.name, answer.detections,
                                           "crop.model" if answer.code else ""))
        if taken.keep:
            with self._database.session() as session:
                harvest.add(session, _row(taken, answer, now.wall))
            if not taken.answer:
                self._reply(taken.crop, Answer(taken.crop.device, taken.crop.id, taken.model.name, code="crop.kept"))

    def _reply(self, crop: Crop, answer: Answer) -> None:
        try:
            envelope = self._sign(answer)
        except JetfleetError as error:
            _log.error("%s", error.diagnostics())
            return
        if len(envelope) > MAX_MESSAGE_BYTES:
            envelope = self._sign(Answer(answer.device, answer.id, answer.model, code="crop.refused"))
        self._link.publish(topics.answer(crop.device), envelope, qos=1, expiry_s=60)

    def _prune(self) -> None:
        with self._database.reading() as session:
            over = harvest.total_bytes(session) - self._bounds.keep_bytes
        while over > 0:
            with self._database.session() as session:
                rows = harvest.oldest(session, PRUNE_ROWS)
                victims = []
                for row in rows:
                    if over <= 0:
                        break
                    victims.append(row)
                    over -= row.size
                gone = harvest.remove(session, victims)
            self._files.remove(gone)
            if not victims:
                return


def _row(taken: _Taken, answer: CropAnswer, wall: float) -> HardExample:
    note = taken.note
    x0, y0, x1, y1 = note.window
    return HardExample(
        device=taken.crop.device, crop=taken.crop.id, app=taken.crop.app, source=note.source, frame=note.frame, bundle=note.bundle,
        version=note.version, candidate=note.candidate, task=taken.model.task.kind, digest=hashlib.sha256(taken.jpeg).hexdigest(),
        size=len(taken.jpeg), canvas_w=note.canvas[0], canvas_h=note.canvas[1], x0=x0, y0=y0, x1=x1, y1=y1,
        edge=msgspec.json.encode(note.edge).decode(), said=msgspec.json.encode(answer.detections).decode(),
        model=taken.model.name, answered=0 if answer.code else 1, taken=taken.crop.at, at=wall)
