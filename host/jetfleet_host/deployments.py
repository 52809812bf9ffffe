"""Deployments of boards: composed from what a board runs and what a rollout changes, signed, stored once. Inside a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from sqlalchemy.orm import Session

from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.messages import AppSpec, Deployment, Instant
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.trust import check_deployment

from .store import journal, tags
from .store.journal import StartRequest
from .store.models import AppRow, Device

DEPLOYMENT_LIFE_S = 90 * 86400.0
RENEW_BEFORE_S = 30 * 86400.0

Outgoing = list[tuple[str, bytes]]
"""`(device, envelope)`: what is to be published, once the transaction is committed."""

ReleaseOf = Callable[[str], tuple[str, int]]
"""Model name and release of a published bundle (manifest's hex digest); ("", 0) when unknown."""


class Deployments:
    """Gives boards their next deployment.

    Args:
        sign: gives the envelope of a deployment.
        seal_to: the key (hex) to which boards seal pictures; asked for when a policy lets any out.
    """

    def __init__(self, sign: Callable[[Deployment], bytes], seal_to: Callable[[], str] = lambda: "") -> None:
        self._sign = sign
        self._seal_to = seal_to

    def issue(self, session: Session, request: StartRequest, device: str, now: Instant) -> Outgoing:
        """The rollout's bundle for this board; nothing when it was issued by an earlier run: all that is stored is published anyway."""
        plan = request.plan
        if journal.issued(session, plan.id, device, "forward"):
            return []
        current = journal.deployment_of(session, device)
        before = app_of(current, plan.app)
        wanted = renewed_app(request, before)
        deployment = _composed(session, device, current, plan, wanted, now)
        envelope = self._store(session, deployment, now)
        journal.add_issued(session, plan.id, "forward", deployment, wanted.bundle, before, now.wall)
        return [(device, envelope)]

    def revert(self, session: Session, plan: Plan, device: str, now: Instant) -> Outgoing:
        """What the board had before the rollout. The way back may lead to an older release: it is approved by being one."""
        forward = journal.issued(session, plan.id, device, "forward")
        if forward is None or journal.issued(session, plan.id, device, "back"):
            return []
        before = journal.before_of(forward)
        back = msgspec.structs.replace(before, downgrade=True) if before else None
        deployment = _composed(session, device, journal.deployment_of(session, device), plan, back, now)
        envelope = self._store(session, deployment, now)
        journal.add_issued(session, plan.id, "back", deployment, back.bundle if back else "", back, now.wall)
        return [(device, envelope)]

    def renew(self, session: Session, now: Instant) -> Outgoing:
        """Sign again, under the next number, what would expire within a month. The boards change nothing."""
        outgoing = []
        for device, _ in journal.retained(session):
            current = journal.deployment_of(session, device)
            if current and current.expires - now.wall < RENEW_BEFORE_S:
                fresh = msgspec.structs.replace(current, seq=current.seq + 1, expires=now.wall + DEPLOYMENT_LIFE_S)
                outgoing.append((device, self._store(session, fresh, now)))
        return outgoing

    def _store(self, session: Session, deployment: Deployment, now: Instant) -> bytes:
        leaves = any(set(app.config.privacy.purposes) & {"cascade", "harvest"} for app in deployment.apps)
        deployment = msgspec.structs.replace(deployment, receiver=self._seal_to() if leaves else "")
        envelope = self._sign(deployment)
        journal.save_deployment(session, deployment, envelope, now.wall)
        return envelope


def check_deployable(session: Session, request: StartRequest, device: str) -> None:
    """The deployment that this board would get is one that it will accept; else InputError `rollout.deployment`."""
    current = journal.deployment_of(session, device)
    before = app_of(current, request.plan.app)
    wanted = _with_app(current.apps if current else (), request.plan.app, renewed_app(request, before))
    try:
        check_deployment(Deployment(device, 1, 0.0, wanted))
    except MalformedError as error:
        raise InputError("rollout.deployment", f"board {device} could not run this: {error.what}", where=error.code,
                         remedy="correct apps.toml; an app that feeds another is rolled out first") from None


def falling(session: Session, app: str, bundle: str, devices: Iterable[str], release_of: ReleaseOf) -> list[str]:
    """Boards that run, or should run, a newer release of the same model than this bundle."""
    name, release = release_of(bundle)
    if not release:
        return []
    lower = []
    for device in devices:
        state = session.get(AppRow, (device, app))
        should = app_of(journal.deployment_of(session, device), app)
        running = {release_of(known) for known in (state.bundle if state else "", should.bundle if should else "") if known}
        if any(other == name and newer > release for other, newer in running):
            lower.append(device)
    return lower


def check_releases(session: Session, request: StartRequest, release_of: ReleaseOf) -> None:
    """Raises InputError `rollout.downgrade` when boards would go back to an older release, and nobody has allowed it."""
    plan = request.plan
    if request.spec.downgrade:
        return
    lower = falling(session, plan.app, plan.bundle, [device for wave in plan.waves for device in wave], release_of)
    if lower:
        raise InputError("rollout.downgrade", f"{plan.name} {plan.version} is an older release than what runs on {len(lower)} boards: "
                         f"{', '.join(lower[:5])}{' ...' if len(lower) > 5 else ''}", where=plan.app,
                         remedy="add --allow-downgrade if that is meant; who allowed it is recorded")


def app_of(deployment: Deployment | None, app: str) -> AppSpec | None:
    """One app of a deployment."""
    return next((spec for spec in deployment.apps if spec.app == app), None) if deployment else None


def renewed_app(request: StartRequest, before: AppSpec | None) -> AppSpec:
    """The app as this board gets it: its own settings with `keep`, else the request's, with a config version that grows."""
    spec, overrides = request.spec, request.overrides
    wanted = spec
    if before is not None and request.keep:
        wanted = msgspec.structs.replace(before, bundle=spec.bundle, name=spec.name, version=spec.version, downgrade=spec.downgrade)
    elif before is not None:
        same = msgspec.structs.replace(spec.config, version=before.config.version)
        version = before.config.version if same == before.config else before.config.version + 1
        wanted = msgspec.structs.replace(spec, config=msgspec.structs.replace(spec.config, version=version))
    return msgspec.structs.replace(wanted, trial=overrides.trial or wanted.trial, delivery=overrides.delivery or wanted.delivery)


def _composed(session: Session, device: str, current: Deployment | None, plan: Plan, app: AppSpec | None, now: Instant) -> Deployment:
    """The board's next deployment: as the current one, with this app replaced (None: taken off)."""
    apps = _with_app(current.apps if current else (), plan.app, app)
    known = session.get(Device, device)
    highest = max(current.seq if current else 0, known.seq if known else 0)
    return Deployment(device, highest + 1, now.wall + DEPLOYMENT_LIFE_S, apps, plan.id, tags.of(session, device))


def _with_app(apps: tuple[AppSpec, ...], name: str, app: AppSpec | None) -> tuple[AppSpec, ...]:
    """The apps with one replaced; taken off (None), those that it feeds go too, because they would have no input."""
    if app is not None:
        return tuple(sorted((*(a for a in apps if a.app != name), app), key=lambda a: a.app))
    gone = {name}
    while fed := {a.app for a in apps if a.input_from in gone} - gone:
        gone |= fed
    return tuple(a for a in apps if a.app not in gone)
