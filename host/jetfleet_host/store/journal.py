"""The journal of rollouts: machine states, what was issued to whom, and the requests of commands. Inside a transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jetfleet_contract.messages import AppSpec, DeliveryPolicy, Deployment, Message, Report, TrialPolicy
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import FINAL, Progress, Rollout

from .models import Desired, Issued, ReportRow, RolloutDevice, RolloutRequest, RolloutRow

_ENCODE = msgspec.json.Encoder(order="sorted").encode
OutcomeWord = Literal["committed", "refused", "rolled_back", "failed"]
_PROGRESS = msgspec.json.Decoder(Progress)


class Overrides(Message, frozen=True):
    """What a plan sets of an app, whatever apps.toml or the board has; None: nothing."""

    trial: TrialPolicy | None = None
    delivery: DeliveryPolicy | None = None


class StartRequest(Message, frozen=True, tag="start"):
    """Begin `plan`. `spec` is what each board's app becomes; with `keep` only its bundle is taken, the rest stays as it is.
    `spec.downgrade`: an operator allows that boards go back to an older release."""

    plan: Plan
    spec: AppSpec
    keep: bool
    overrides: Overrides = Overrides()


class ControlRequest(Message, frozen=True, tag="control"):
    """Pause, resume or abort a rollout; `rollback` goes with abort, `accept` and who (`by`) with resume."""

    op: str
    rollback: bool = False
    accept: bool = False
    by: str = ""


Request = StartRequest | ControlRequest
_REQUEST: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def add_rollout(session: Session, state: Rollout, spec: AppSpec, keep: bool, now: float, overrides: Overrides | None = None) -> None:
    """A new rollout with all its boards."""
    session.add(RolloutRow(id=state.plan.id, app=state.plan.app, phase=state.phase, head=_head(state), spec=_ENCODE(spec),
                           keep=keep, overrides=_ENCODE(overrides or Overrides()), created=now, changed=now))
    session.flush()
    session.add_all(RolloutDevice(rollout=state.plan.id, device=device, progress=_ENCODE(progress), status=progress.status)
                    for device, progress in state.devices.items())


def save_state(session: Session, state: Rollout, changed: Iterable[str], now: float) -> None:
    """The machine's state: its head, and the boards that changed."""
    session.execute(update(RolloutRow).where(RolloutRow.id == state.plan.id)
                    .values(phase=state.phase, head=_head(state), changed=now))
    for device in changed:
        progress = state.devices[device]
        session.merge(RolloutDevice(rollout=state.plan.id, device=device, progress=_ENCODE(progress), status=progress.status))


def load_state(session: Session, row: RolloutRow) -> Rollout:
    """The state as it was last persisted."""
    head = msgspec.json.decode(row.head, type=Rollout)
    rows = session.scalars(select(RolloutDevice).where(RolloutDevice.rollout == row.id))
    return msgspec.structs.replace(head, devices={r.device: _PROGRESS.decode(r.progress) for r in rows})


def active(session: Session) -> list[Rollout]:
    """All rollouts that are not over."""
    rows = session.scalars(select(RolloutRow).where(RolloutRow.phase.not_in(FINAL)).order_by(RolloutRow.created))
    return [load_state(session, row) for row in rows]


def owing(session: Session) -> list[Rollout]:
    """Rollouts that are over, but have boards that never answered."""
    late = select(RolloutDevice.rollout).where(RolloutDevice.status.in_(("issued", "silent", "reverting", "stuck"))).distinct()
    rows = session.scalars(select(RolloutRow).where(RolloutRow.phase.in_(FINAL), RolloutRow.id.in_(late)).order_by(RolloutRow.created))
    return [load_state(session, row) for row in rows]


def answered_late(session: Session, report: Report) -> Rollout | None:
    """The rollout that is over and that this outcome answers; None when there is none."""
    row = session.scalar(
        select(RolloutRow).join(Issued, Issued.rollout == RolloutRow.id)
        .where(RolloutRow.phase.in_(FINAL), RolloutRow.app == report.app, Issued.device == report.device, Issued.bundle == report.bundle,
               Issued.seq <= report.seq)
        .order_by(Issued.seq.desc()).limit(1))
    return load_state(session, row) if row else None


def request_of(session: Session, state: Rollout) -> StartRequest:
    """What was asked when the rollout began, with its plan as it is now."""
    row = session.get_one(RolloutRow, state.plan.id)
    overrides = msgspec.json.decode(row.overrides, type=Overrides) if row.overrides else Overrides()
    return StartRequest(state.plan, msgspec.json.decode(row.spec, type=AppSpec), row.keep, overrides)


def deployment_of(session: Session, device: str) -> Deployment | None:
    """What the board should run now, as last signed."""
    row = session.get(Desired, device)
    return msgspec.json.decode(row.body, type=Deployment) if row else None


def save_deployment(session: Session, deployment: Deployment, envelope: bytes, now: float) -> None:
    """The board's one retained deployment."""
    session.merge(Desired(device=deployment.device, seq=deployment.seq, body=_ENCODE(deployment), envelope=envelope,
                          rollout=deployment.rollout, at=now))


def retained(session: Session) -> list[tuple[str, bytes]]:
    """Every board's signed deployment."""
    return [(row.device, row.envelope) for row in session.scalars(select(Desired).order_by(Desired.device))]


def outcomes_of(session: Session, state: Rollout) -> list[Report]:
    """The stored outcomes of this rollout's app on its boards, oldest first: also those that the driver never saw."""
    rows = session.scalars(
        select(ReportRow).join(Issued, (Issued.device == ReportRow.device) & (Issued.rollout == state.plan.id))
        .where(ReportRow.app == state.plan.app, ReportRow.outcome != "", ReportRow.seq >= Issued.seq)
        .distinct().order_by(ReportRow.id))
    return [_report(row) for row in rows]


def _report(row: ReportRow) -> Report:
    return Report(row.device, row.report, row.seq, row.app, row.at, row.phase, row.bundle, row.version, row.from_version,
                  msgspec.convert(row.outcome, OutcomeWord), row.code, row.detail, row.candidate)


def exists(session: Session, rollout: str) -> bool:
    return session.get(RolloutRow, rollout) is not None


def issued(session: Session, rollout: str, device: str, kind: str) -> Issued | None:
    return session.get(Issued, (rollout, device, kind))


def add_issued(session: Session, rollout: str, kind: str, deployment: Deployment, bundle: str, before: AppSpec | None, now: float) -> None:
    """Note that this rollout gave this board a deployment; the primary key refuses a second one."""
    session.add(Issued(rollout=rollout, device=deployment.device, kind=kind, seq=deployment.seq, bundle=bundle,
                       before=_ENCODE(before) if before else b"", at=now))
    session.flush()


def before_of(row: Issued) -> AppSpec | None:
    """The app as the board had it before the rollout."""
    return msgspec.json.decode(row.before, type=AppSpec) if row.before else None


def ask(session: Session, rollout: str, request: Request, now: float) -> int:
    """Leave a request for `serve`; its number."""
    row = RolloutRequest(at=now, rollout=rollout, body=_ENCODE(request), answered=False)
    session.add(row)
    session.flush()
    return row.id


def open_requests(session: Session) -> list[tuple[int, str, Request]]:
    rows = session.scalars(select(RolloutRequest).where(RolloutRequest.answered.is_(False)).order_by(RolloutRequest.id))
    return [(row.id, row.rollout, _REQUEST.decode(row.body)) for row in rows]


def answer(session: Session, request: int, code: str, text: str) -> None:
    """Answer a request; an empty code says that it was done."""
    session.execute(update(RolloutRequest).where(RolloutRequest.id == request).values(answered=True, code=code, answer=text))


def _head(state: Rollout) -> bytes:
    return _ENCODE(msgspec.structs.replace(state, devices={}))


def answer_of(session: Session, request: int) -> tuple[str, str] | None:
    """`(code, text)` once it was answered."""
    row = session.get_one(RolloutRequest, request)
    return (row.code, row.answer) if row.answered else None


def take(session: Session, request: int) -> bool:
    """Mark a request as begun; False when it was withdrawn. Taken twice is fine: the process before this one may have died."""
    row = session.get_one(RolloutRequest, request)
    if not row.answered:
        row.code = "request.taken"
    return not row.answered


def withdraw(session: Session, request: int) -> bool:
    """Take back a request that nobody has begun; False when somebody has."""
    row = session.get_one(RolloutRequest, request)
    if row.answered or row.code:
        return False
    row.answered, row.code = True, "request.withdrawn"
    return True
