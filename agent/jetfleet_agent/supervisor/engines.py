"""The class cache of engines on the board: finds the engine that serves a model here, fetches it, asks for it, or builds it.

A model never waits for an engine: as long as there is none it is compiled, and the engine is loaded at the app's next start. Whether an
engine is to blame for a pipeline that ended by itself is for `engine_doubts` to find out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from jetfleet_agent.supervisor.engine_record import BuildUnderWay, EngineMemory
from jetfleet_agent.supervisor.engine_work import EngineAnswer, EngineOrder
from jetfleet_contract import topics
from jetfleet_contract.bundle import ModelSpec
from jetfleet_contract.delegations import EngineTarget, engine_path, role_of_class
from jetfleet_contract.engine_use import Judged, Verdict, judge_engine, why_not_ours
from jetfleet_contract.engines import (
    EngineFile,
    EngineWord,
    Footing,
    Passport,
    check_passport,
    engine_name,
    key_of,
    timing_name,
)
from jetfleet_contract.errors import IncompatibleError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.footings import recipe_of
from jetfleet_contract.messages import Instant, decode
from jetfleet_contract.policy import Candidate, backoff
from jetfleet_contract.slot_records import Slot
from jetfleet_contract.tuning import Tuning

from .bundle_reader import BundleReader
from .engine_doubts import Doubts
from .engine_needs import Need, in_words, rows_of
from .engine_ports import Giving, Saying, Signing, Storing, Vouching, Wanting, Working
from .vouching import Vouched, given_for, vouch

log = logging.getLogger(__name__)

ASK_BASE_S = 5.0
ASK_CAP_S = 1800.0
AGAIN_S = 60.0
BUSY_S = 0.5
TELL_S = 10.0
OWN_AFTER_S = 600.0
WORD_EXPIRY_S = 3600
MODELS_AN_APP = 2
MAX_ARGUMENT = 16_384


class Engines:
    """See the module. All methods belong to the control thread.

    Args:
        footing: what engines of a backend are bound to here, None where it has none; `lacks` says why it has none.
        unit: random numbers in 0..1. own_after_s: a board that nobody has served for so long builds for itself. under: power mode and
            clocks now, in words.
    """

    def __init__(self, device: str, device_class: str, footing: Callable[[str], Footing | None], trust: Vouching, store: Storing,
                 fetcher: Wanting, uploads: Giving, identity: Signing, link: Saying, work: Working, memory: EngineMemory,
                 clock: Callable[[], Instant], unit: Callable[[], float], *, own_after_s: float = OWN_AFTER_S,
                 lacks: Callable[[str], str] = "this board has no engines of {}".format, under: Callable[[], str] = str) -> None:
        self._device = device
        self._class = device_class
        self._footing = footing
        self._trust = trust
        self._store = store
        self._reader = BundleReader(store)
        self._fetcher = fetcher
        self._uploads = uploads
        self._identity = identity
        self._link = link
        self._work = work
        self._memory = memory
        self._clock = clock
        self._unit = unit
        self._own_after_s = own_after_s
        self._lacks, self._under = lacks, under
        self._tried: dict[str, Verdict] = {}
        self._needs: dict[tuple[str, str], Need] = {}
        self._doubts = Doubts(memory)
        self._order: EngineOrder | None = None
        self._percent = 0.0
        self._told_at = 0.0
        self._certify: tuple[int, Passport, EngineTarget] | None = None
        self._handing: tuple[EngineAnswer, tuple[Vouched, ...]] | None = None

    @property
    def building(self) -> bool:
        """Whether an engine is being built or tried now."""
        return self._order is not None

    # --- what a model runs with -------------------------------------------------------------------------------

    def engine(self, app: str, slot: Slot, spec: ModelSpec, candidate: Candidate, tuning: Tuning, threads: int) -> EngineFile | None:
        """The engine to run that model with, or None: compile it. What is not here is fetched or asked for from now on."""
        footing = self._footing(candidate.backend)
        recipe = recipe_of(candidate.backend, slot.weights, candidate.precision, spec.task.input, tuning, threads) if slot.weights else None
        self._doubts.loads(app, slot.bundle, "")
        if footing is None or recipe is None:
            return None
        passport = Passport(footing, recipe, slot.bundle, candidate.variant, self._device)
        known = self._needs.pop((app, slot.bundle), None)
        need = known if known is not None and known.passport == passport else Need(app, passport, self._clock().mono)
        self._needs[app, slot.bundle] = need
        for old in [one for one in self._needs if one[0] == app][:-MODELS_AN_APP]:
            del self._needs[old]
            self._doubts.loads(*old, "")
        verdict = self._judge(need)
        if verdict.act != "run":
            log.info("%s: %s is compiled here: %s [%s]", app, candidate.name, verdict.detail or "its engine is being fetched",
                     verdict.code or "engine.coming")
            return None
        try:
            path = self._store.verified(verdict.blob)
            self._memory.uses(verdict.blob, slot.bundle)
        except JetfleetError as error:
            log.warning("%s: the engine is not used: %s [%s]", app, error.what, error.code)
            return None
        self._doubts.loads(app, slot.bundle, verdict.blob)
        log.info("%s: %s runs with engine %s", app, candidate.name, verdict.blob[:16])
        return EngineFile(str(path), verdict.blob)

    def _judge(self, need: Need) -> Verdict:
        key, record = key_of(need.passport), self._memory.now
        own, name = record.own.get(key, ""), engine_name(key)
        try:
            signed = self._trust.engine(self._class, engine_path(self._class, name))
        except UntrustedError:
            signed = None
        blobs = {blob for blob in (own, signed.blob if signed else "") if blob and self._store.has(blob)}
        need.verdict = judge_engine(need.passport, signed, uncertified=name in self._trust.uncertified(self._class), own=own,
                                    present=blobs, bad=record.bad)
        if need.verdict.act == "run" and self._doubts.is_doubted(need.app, need.verdict.blob):
            need.verdict = Verdict("compile", need.verdict.blob, "engine.doubted",
                                   "the app ended twice with the engine: it is tried without")
        if need.verdict.act == "fetch" and signed is not None:
            self._fetch(need, signed)
        return need.verdict

    def _fetch(self, need: Need, signed: EngineTarget) -> None:
        """Wanting twice is fine: others may have cancelled the fetch."""
        now = self._clock().mono
        if now < need.wanted_at:
            return
        need.wanted_at = now + AGAIN_S
        self._memory.uses(signed.blob, need.passport.subject)
        self._store.check_space(self._store.needed(signed.blob, signed.info.size))
        self._fetcher.want(signed.blob, signed.info)

    def held(self, bundles: set[str]) -> set[str]:
        """Engines of these bundles: not to be removed from the store."""
        trying = {self._certify[2].blob} if self._certify else set()
        return trying | {blob for blob, bundle in self._memory.now.used.items() if bundle in bundles}

    def explained(self) -> dict[str, str]:
        """By app, how it gets its engine, or why it has none."""
        return {need.app: in_words(need.verdict) for need in self._needs.values()}

    def judged(self) -> tuple[Judged, ...]:
        """Every engine of the apps' bundles that the class's builders signed, and what this board does about it."""
        return rows_of(self._needs.values(), self._trust.engines(self._class), self._footing, self._lacks, self._tried)

    def is_news(self, app: str) -> bool:
        """Whether an engine has come that the app was not started with."""
        return any(need.app == app and need.verdict.act == "run" and need.verdict.blob not in self._doubts.loaded(app)
                   for need in self._needs.values())

    def failed(self, app: str, code: str) -> bool:
        """The app's process refused its engine: it is not loaded again. False when it had none."""
        blobs = self._doubts.refused(app)
        for blob in blobs:
            log.warning("%s: engine %s is not used any more [%s]; the model is compiled here", app, blob[:16], code)
            if code == "engine.digest":  # that is the disk's doing: once it is whole again it may be used
                self._store.doubt(blob)
            else:
                self._memory.failed(blob, code)
        return bool(blobs)

    def serves(self, app: str) -> None:
        """The app's model is loaded and has answered."""
        self._doubts.answers(app, self._clock().mono)

    def ended(self, app: str, code: str) -> bool:
        """The app's process ended by itself, or was to: `code` is empty. True when its next one is to load another engine, or none."""
        return self._doubts.ended(app, code, self._clock().mono)

    # --- called by the supervisor -----------------------------------------------------------------------------

    def follow(self) -> None:
        """New metadata, or the broker is back: look, and ask, again."""
        for need in self._needs.values():
            need.asked_at = need.wanted_at = need.look_at = 0.0
            need.attempt = 0

    def blob_done(self, blob: str) -> None:
        """An engine, or the metadata that names one, may have come."""
        for need in self._needs.values():
            need.look_at = 0.0
        if self._certify is not None and self._certify[2].blob == blob:
            self._try_certified()

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        """It cannot be had now; `tick` asks again."""
        for need in self._needs.values():
            if need.verdict.act == "fetch" and need.verdict.blob == blob:
                log.warning("%s: engine %s cannot be had: %s [%s]", need.app, blob[:16], error.what, error.code)
        if self._certify is not None and self._certify[2].blob == blob:
            _, passport, _ = self._certify
            self._certify = None
            self._say(passport, "failed", code=error.code, detail=error.what)

    def tick(self) -> float:
        """Ask for what is due, take up what was built; seconds until the next call is wanted."""
        for answer in self._work.answers():
            self._answered(answer)
        self._hand_over()
        self._resume()
        with contextlib.suppress(StorageError):  # it is for people; the next tick tries again
            self._memory.explain(self.judged())
            self._doubts.look(self._clock().mono)
        now = self._clock().mono
        wait = min((self._ask(need, now) for need in self._needs.values()), default=AGAIN_S)
        if self._order is None:
            return max(0.0, wait)
        if now >= self._told_at + TELL_S and self._certify is None:
            self._tell_building(self._percent)
        return BUSY_S

    def close(self) -> None:
        self._work.stop()

    def _ask(self, need: Need, now: float) -> float:
        if now < need.look_at:
            return need.look_at - now
        before, verdict = need.verdict.act, self._judge(need)
        if verdict.act == "run" and before != "run":
            log.info("%s: engine %s is here; the next start loads it", need.app, verdict.blob[:16])
        if verdict.act != "ask" and verdict.code != "engine.uncertified":  # whoever waits for a certificate may be asked to try the engine
            need.look_at = now + AGAIN_S
            return AGAIN_S
        if verdict.act == "ask" and self._order is None and now - need.since >= self._own_after_s:
            need.since = now
            self._begin(need.passport, 0)
        if not self._link.connected:
            return AGAIN_S
        if now >= need.asked_at:
            self._say(need.passport, "need")
            if self._identity.public_hex in self._trust.builders(self._class):  # it may be asked to build: what helps comes now
                self._timings(need.passport)
            need.asked_at = now + backoff(need.attempt, self._unit(), base_s=ASK_BASE_S, cap_s=ASK_CAP_S)
            need.attempt += 1
        return need.asked_at - now

    def _say(self, passport: Passport, what: str, *, percent: float = 0.0, blob: str = "", code: str = "", detail: str = "",
             agreed: float = 0.0, p50_ms: float = 0.0) -> None:
        word = msgspec.convert({"device": self._device, "key": key_of(passport), "what": what, "at": self._clock().wall,
                                "passport": msgspec.to_builtins(passport), "percent": percent, "blob": blob, "code": code,
                                "detail": detail[:300], "agreement": agreed, "p50_ms": p50_ms,
                                "under": self._under() if p50_ms else ""}, EngineWord)
        self._link.publish(topics.engine_word(self._device), self._identity.sign("engine", word), qos=1, expiry_s=WORD_EXPIRY_S)

    # --- commands of the host ---------------------------------------------------------------------------------

    def obey(self, op: str, command: int, args: Mapping[str, str]) -> tuple[str, str, str]:
        """Begin what `engine-build` or `engine-certify` asks for, with the arguments `key` and `passport` (JSON). Code, detail and body."""
        try:
            passport = self._asked_for(op, args)
            if self._order is not None or self._certify is not None:
                return "engine.busy", "this board is at work on an engine already", ""
            if op == "engine-build":
                self._check_builder()
                self._begin(passport, command)
            else:
                self._begin_certify(passport, command)
        except JetfleetError as error:
            return error.code, error.what, ""
        return "", f"{op} of {key_of(passport)[:16]} has begun", ""

    def _asked_for(self, op: str, args: Mapping[str, str]) -> Passport:
        passport = check_passport(decode(args.get("passport", "").encode(), Passport, limit=MAX_ARGUMENT))
        if args.get("key") != key_of(passport):
            raise MalformedError("engine.key", "the key is not that of the passport")
        here = self._footing(passport.footing.backend)
        if here is None and op == "engine-certify":  # asked by name to try it: the runtime is asked anew, once the engine is here and whole
            return passport
        if here is None:
            raise IncompatibleError("engine.backend", self._lacks(passport.footing.backend))
        code, detail = why_not_ours(msgspec.structs.replace(passport, footing=here), passport)
        if code:
            raise IncompatibleError(code, detail)
        return msgspec.structs.replace(passport, builder=self._device)

    def _check_builder(self) -> str:
        """The id of this board's key in the class's delegation."""
        keyid = self._trust.builders(self._class).get(self._identity.public_hex)
        if keyid is None:
            raise UntrustedError("engine.not-builder", f"this board is no builder of class {self._class}: it builds for itself only",
                                 remedy="name it on the host: jetfleet keys delegate CLASS --device NAME")
        if self._trust.delegation(self._class) is not None:
            raise UntrustedError("trust.delegation-missing", f"the newest metadata of class {self._class} is not here yet")
        return keyid

    def _signing_time(self) -> float:
        """Seconds since 1970 that what is signed now counts from: a clock that nobody has set is not asked, the newest signed time is."""
        now = self._clock()
        return now.wall if now.wall_trusted else self._trust.clock_floor

    def _begin(self, passport: Passport, command: int) -> None:
        try:
            weights = self._store.verified(passport.recipe.weights)
            order = EngineOrder(passport, self._reader.contents(passport.subject), weights, command, self._built_before(passport),
                                self._timings(passport))
        except StorageError as error:
            raise StorageError("engine.no-weights", f"the bundle to build from is not on this board: {error.what}") from None
        if command:
            self._memory.building(BuildUnderWay(command, passport))
        self._order = order
        self._work.put(order)
        self._tell_building(0.0)

    def _timings(self, passport: Passport) -> Path | None:
        """What the class's builders measured of kernels on this footing, when it is here; else it is fetched for the next build."""
        try:
            signed = self._trust.engine(self._class, engine_path(self._class, timing_name(passport.footing)))
            if self._store.has(signed.blob):
                return self._store.verified(signed.blob)
            self._memory.uses(signed.blob, passport.subject)
            self._store.check_space(self._store.needed(signed.blob, signed.info.size))
            self._fetcher.want(signed.blob, signed.info)
        except JetfleetError as error:
            log.debug("no timing cache of the class is used: %s [%s]", error.what, error.code)
        return None

    def _built_before(self, passport: Passport) -> EngineFile | None:
        """What this board built of that key: it is tried and signed again, on top of what another builder has signed since."""
        blob = self._memory.now.own.get(key_of(passport), "")
        if not blob or blob in self._memory.now.bad or not self._store.sound(blob):
            return None
        return EngineFile(str(self._store.path(blob)), blob)

    def _resume(self) -> None:
        """A build that a power cut ended begins again."""
        under_way = self._memory.now.building
        if under_way is None or self._order is not None:
            return
        try:
            self._check_builder()
            self._begin(under_way.passport, under_way.command)
        except JetfleetError as error:
            log.warning("a build is not taken up again: %s [%s]", error.what, error.code)
            self._memory.building(None)

    def _tell_building(self, percent: float) -> None:
        self._percent, self._told_at = percent, self._clock().mono
        if self._order is not None and self._order.command:
            self._say(self._order.passport, "building", percent=percent)

    def _answered(self, answer: EngineAnswer) -> None:
        if answer.percent < 100.0:
            self._tell_building(answer.percent)
            return
        self._order = None
        order = answer.order
        if self._certify is not None and order.engine is not None:
            self._certify = None
            what = "it is here and whole; tried, it ended with: " + answer.detail if answer.code else "it was tried, and fits"
            self._tried[order.engine.digest] = Verdict("compile", order.engine.digest, answer.code, what)
            self._say(order.passport, "unfit" if answer.code else "fit", blob=order.engine.digest, code=answer.code, detail=answer.detail,
                      agreed=answer.agreement, p50_ms=answer.p50_ms)
            return
        try:
            if answer.code or answer.engine is None:
                raise IncompatibleError(answer.code or "engine.export", answer.detail)
            self._keep(answer, answer.engine)
        except JetfleetError as error:
            self._gave_up(order, error)

    def _gave_up(self, order: EngineOrder, error: JetfleetError) -> None:
        log.warning("the engine is not built: %s [%s]", error.what, error.code)
        self._memory.building(None)
        if order.command:
            self._say(order.passport, "failed", code=error.code, detail=error.what)

    def _keep(self, answer: EngineAnswer, engine: EngineFile) -> None:
        """Store what was built, and give it to the host when the host asked for it: the bytes first, what names them once it has them."""
        order, path = answer.order, Path(engine.path)
        data = path.read_bytes()
        if order.engine is None:
            self._store.put_bytes(engine.digest, data)
            path.unlink(missing_ok=True)
        self._memory.built(key_of(order.passport), engine.digest, order.passport.subject)
        log.info("engine %s of %s is built", engine.digest[:16], order.passport.variant)
        if order.command:
            self._handing = answer, given_for(self._uploads, self._class, order, data, answer.timings)
            self._order = order
            self._tell_building(90.0)

    def _hand_over(self) -> None:
        """The host has judged the bytes: sign for them, on top of the class's newest metadata."""
        if self._handing is None or any(self._uploads.is_waiting(one.blob) for one in self._handing[1]):
            return
        (answer, fresh), self._handing, self._order = self._handing, None, None
        order = answer.order
        try:
            signed = vouch(self._trust.vouched(self._class), fresh, keyid=self._check_builder(), sign=self._identity.sign_bytes,
                           now=self._signing_time())
            self._uploads.offer_bytes(signed, "engine", f"{role_of_class(self._class)}.json", command=order.command)
        except JetfleetError as error:
            self._gave_up(order, error)
            return
        self._memory.building(None)
        self._say(order.passport, "built", percent=100.0, blob=fresh[0].blob, agreed=answer.agreement, p50_ms=answer.p50_ms)

    # --- certifying -------------------------------------------------------------------------------------------

    def _begin_certify(self, passport: Passport, command: int) -> None:
        target = self._trust.engine(self._class, engine_path(self._class, engine_name(key_of(passport))))
        code, detail = why_not_ours(passport, target.passport)
        if code:
            raise IncompatibleError(code, detail)
        self._reader.contents(passport.subject)
        self._certify = (command, passport, target)
        self._memory.uses(target.blob, passport.subject)  # it stays when it was tried: this board wants it, too
        if self._store.has(target.blob):
            self._try_certified()
        else:
            self._fetcher.want(target.blob, target.info)

    def _try_certified(self) -> None:
        if self._certify is None:
            return
        command, passport, target = self._certify
        try:
            engine = EngineFile(str(self._store.verified(target.blob)), target.blob)
            weights = self._store.verified(passport.recipe.weights)
            self._order = EngineOrder(passport, self._reader.contents(passport.subject), weights, command, engine)
        except JetfleetError as error:
            self._certify = None
            self._say(passport, "unfit", blob=target.blob, code=error.code, detail=error.what)
            return
        self._work.put(self._order)
