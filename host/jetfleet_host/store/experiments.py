"""Experiments in the database: their states, what commands ask, and the values by board that a look judges. Inside a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jetfleet_contract.experiments import FINAL, Experiment
from jetfleet_contract.rollout_records import FINAL as ROLLOUT_FINAL
from jetfleet_contract.sketch import Sketch

from .fleet import unpack_stage
from .models import ExperimentRow, Observation, RolloutRequest, RolloutRow, SeriesRow, WindowRow

_ENCODE = msgspec.json.Encoder(order="sorted").encode
_DECODE = msgspec.json.Decoder(Experiment).decode
_GAUGES = msgspec.json.Decoder(dict[str, float]).decode


def add(session: Session, state: Experiment, now: float) -> None:
    """A new experiment; `serve` takes it up."""
    session.add(ExperimentRow(id=state.plan.id, app=state.plan.app, phase=state.phase, body=_ENCODE(state), created=now, changed=now))
    session.flush()


def save(session: Session, state: Experiment, now: float) -> None:
    session.execute(update(ExperimentRow).where(ExperimentRow.id == state.plan.id)
                    .values(phase=state.phase, body=_ENCODE(state), changed=now))


def load(session: Session, experiment: str) -> Experiment | None:
    row = session.get(ExperimentRow, experiment)
    return _DECODE(row.body) if row else None


def newest(session: Session, limit: int = 20) -> list[Experiment]:
    """The newest experiments, newest first."""
    rows = session.scalars(select(ExperimentRow).order_by(ExperimentRow.created.desc()).limit(limit))
    return [_DECODE(row.body) for row in rows]


def active(session: Session) -> list[Experiment]:
    """All that are not over, oldest first."""
    rows = session.scalars(select(ExperimentRow).where(ExperimentRow.phase.not_in(FINAL)).order_by(ExperimentRow.created))
    return [_DECODE(row.body) for row in rows]


def on_boards(session: Session, app: str, devices: Iterable[str]) -> Experiment | None:
    """The running experiment of this app that one of these boards takes part in."""
    wanted = set(devices)
    return next((state for state in active(session) if state.plan.app == app and wanted & state.plan.arms.keys()), None)


def ask(session: Session, experiment: str, what: str) -> None:
    """Leave a request: ``abort``, ``promote a`` or ``promote b``."""
    session.execute(update(ExperimentRow).where(ExperimentRow.id == experiment).values(asked=what, answer=""))


def asked(session: Session) -> list[tuple[str, str]]:
    """(experiment, request) of all open requests."""
    rows = session.execute(select(ExperimentRow.id, ExperimentRow.asked).where(ExperimentRow.asked != ""))
    return [(experiment, what) for experiment, what in rows]


def answer(session: Session, experiment: str, text: str) -> None:
    """Answer the open request; an empty text says that it was done."""
    session.execute(update(ExperimentRow).where(ExperimentRow.id == experiment).values(asked="", answer=text))


def answer_of(session: Session, experiment: str) -> str | None:
    """The answer, or None while `serve` has not come to it."""
    row = session.get_one(ExperimentRow, experiment)
    return None if row.asked else row.answer


def rollout_end(session: Session, rollout: str) -> tuple[bool, str]:
    """Whether a rollout is over, and why it did not succeed (empty: it did). A start that `serve` refused counts as over."""
    row = session.get(RolloutRow, rollout)
    if row is not None:
        return row.phase in ROLLOUT_FINAL, "" if row.phase == "done" else row.phase
    request = session.scalar(select(RolloutRequest).where(RolloutRequest.rollout == rollout, RolloutRequest.answered.is_(True),
                                                          RolloutRequest.code != "").limit(1))
    return (True, request.answer.partition("\n")[0] or request.code) if request else (False, "")


def rollout_known(session: Session, rollout: str) -> bool:
    """Whether this rollout was begun or asked for."""
    asked_for = select(RolloutRequest.id).where(RolloutRequest.rollout == rollout).limit(1)
    return session.get(RolloutRow, rollout) is not None or session.scalar(asked_for) is not None


def observe(session: Session, device: str, app: str, name: str, value: float, at: float) -> None:
    session.add(Observation(device=device, app=app, name=name, value=value, at=at))


def observed(session: Session, app: str, name: str, since: float) -> dict[str, float]:
    """Mean by board of a figure that was observed, or that its telemetry carries as gauge ``APP.NAME``, since then (host's wall clock)."""
    values: dict[str, list[float]] = defaultdict(list)
    for device, value in session.execute(select(Observation.device, Observation.value).where(
            Observation.app == app, Observation.name == name, Observation.at >= since)):
        values[device].append(value)
    for device, gauges in session.execute(select(WindowRow.device, WindowRow.gauges).where(WindowRow.received >= since)):
        gauge = _GAUGES(gauges).get(f"{app}.{name}")
        if gauge is not None:
            values[device].append(gauge)
    return {device: fmean(found) for device, found in values.items()}


def latencies(session: Session, app: str, bundles: set[str], quantile: float, since: float) -> dict[str, float]:
    """A quantile in ms of stage `total` by board, over windows of these bundles received since then."""
    merged: dict[str, Sketch] = defaultdict(Sketch)
    for device, stages in session.execute(select(SeriesRow.device, SeriesRow.stages).where(
            SeriesRow.app == app, SeriesRow.bundle.in_(bundles), SeriesRow.received >= since)):
        merged[device] = merged[device].merged(unpack_stage(stages, "total"))
    return {device: sketch.quantile(quantile) for device, sketch in merged.items() if sketch.count}
