"""Which engines the apps' processes have loaded, and which of them are to blame when a process ends by itself."""

from __future__ import annotations

import logging

from jetfleet_contract.engine_doubt import Doubt, Judgement, crashed_with, crashed_without, runs_without

from .engine_record import EngineMemory

log = logging.getLogger(__name__)


class Doubts:
    """Used by the control thread only. Times are monotonic seconds. All methods that change what is remembered raise StorageError."""

    def __init__(self, memory: EngineMemory) -> None:
        self._memory = memory
        self._loaded: dict[str, dict[str, str]] = {}
        self._answers: dict[str, float] = {}

    def loads(self, app: str, bundle: str, blob: str) -> None:
        """The app's process is told to load it for that bundle, or to compile: `blob` is empty."""
        models = self._loaded.setdefault(app, {})
        models.pop(bundle, None)
        if blob:
            models[bundle] = blob

    def loaded(self, app: str) -> frozenset[str]:
        return frozenset(self._loaded.get(app, {}).values())

    def is_doubted(self, app: str, blob: str) -> bool:
        """Whether the app has to run without it for now."""
        doubt = self._memory.now.doubts.get(_name(app, blob))
        return doubt is not None and doubt.without

    def answers(self, app: str, now: float) -> None:
        """The app's process has loaded its model, and it has answered once."""
        self._answers[app] = now

    def refused(self, app: str) -> frozenset[str]:
        """The app's process said that it does not take its engine; the engines that it had."""
        return frozenset(self._loaded.pop(app, {}).values())

    def ended(self, app: str, code: str, now: float) -> bool:
        """The app's process ended: by itself, with that code, or because it was to: the code is empty. True when its next one is to load
        something else."""
        since = self._answers.pop(app, None)
        if not code:
            return False
        answered_s = now - since if since is not None else None
        models = self._loaded.get(app, {})
        had, changed = bool(models), False
        for bundle, blob in list(models.items()):
            doubt = self._memory.now.doubts.get(_name(app, blob), Doubt())
            judgement = crashed_with(doubt, code, answered_s)
            if judgement.convicted or (judgement.doubt is not None and judgement.doubt.without):
                del models[bundle]
                changed = True
            self._take(app, blob, judgement, code)
        if had:
            return changed
        for blob, doubt in self._without(app):
            self._take(app, blob, crashed_without(doubt), doubt.code)
            log.info("%s: engine %s is loaded again: without it the app ended all the same [%s]", app, blob[:16], code)
            changed = True
        return changed

    def look(self, now: float) -> None:
        """Convict what an app does well without."""
        for app, since in self._answers.items():
            for blob, doubt in self._without(app):
                self._take(app, blob, runs_without(doubt, now - since), doubt.code)

    def _without(self, app: str) -> list[tuple[str, Doubt]]:
        return [(name.partition(" ")[2], doubt) for name, doubt in self._memory.now.doubts.items()
                if doubt.without and name.partition(" ")[0] == app]

    def _take(self, app: str, blob: str, judgement: Judgement, code: str) -> None:
        self._memory.doubts(_name(app, blob), judgement.doubt)
        if judgement.convicted:
            log.warning("%s: engine %s is not used any more [%s]; the model is compiled here", app, blob[:16], code)
            self._memory.failed(blob, code)
        elif judgement.doubt is not None and judgement.doubt.without:
            log.warning("%s: ended %d times with engine %s [%s]; it runs without, to see whether the engine is to blame", app,
                        judgement.doubt.crashes, blob[:16], code)


def _name(app: str, blob: str) -> str:
    return f"{app} {blob}"
