"""Was anything lost? Judged from the ledgers of the devices, the host's database and what was seen on the wire, by none of the machines.

Each rule gives sentences about what is wrong; a run in which all are empty lost nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jetfleet_contract.rollout_records import FINAL, Rollout
from jetfleet_host.store import journal
from jetfleet_host.store.models import Counter, Desired, Issued, ReportRow, RolloutRow, SeriesRow, WindowRow
from jetfleet_host.store.models import Device as DeviceRow

from .device import Device, Told
from .tap import Tap

MAX_SENTENCES = 5
# Refusals by the device that faults lead to, and that heal by themselves: a wrong clock, metadata that comes after the deployment, what a
# broker or a host that was killed repeats.
EXPECTED_DEVICE_CODES = frozenset({"trust.expired", "trust.no-metadata", "trust.unknown-key", "trust.unknown-bundle", "trust.rollback",
                                   "trust.seq-lower"})
# Messages that the host refuses when lives of a device overlap on the wire, or before its birth is stored again.
EXPECTED_HOST_CODES = frozenset({"rejected.birth.stale", "rejected.device.unknown"})


class Facts(msgspec.Struct):
    """What the rules look at. `expected`: the phase that the last rollout has to end in; `new` and `old`: bundles by manifest."""

    session: Session
    devices: Mapping[str, Device]
    tap: Tap
    rollouts: list[Rollout]
    expected: str
    unsettled: list[str]


def judge(facts: Facts) -> dict[str, list[str]]:
    """Every rule with what it found wrong; sentences are bounded, the rest is counted."""
    return {name: _bounded(list(rule(facts))) for name, rule in RULES.items()}


def load_rollouts(session: Session) -> list[Rollout]:
    """All rollouts, oldest first, as the journal has them."""
    return [journal.load_state(session, row) for row in session.scalars(select(RolloutRow).order_by(RolloutRow.created))]


def _bounded(sentences: list[str]) -> list[str]:
    more = len(sentences) - MAX_SENTENCES
    return sentences if more <= 0 else [*sentences[:MAX_SENTENCES], f"and {more} more of the kind"]


# --- devices ------------------------------------------------------------------------------------------------


def _settled(facts: Facts) -> Iterable[str]:
    return (f"{name} is down or still has something under way" for name in facts.unsettled)


def _versions(facts: Facts) -> Iterable[str]:
    """Each device runs what its last deployment names, or has told why not."""
    for row in facts.session.scalars(select(Desired)):
        device = facts.devices.get(row.device)
        deployment = journal.deployment_of(facts.session, row.device)
        if device is None or deployment is None or not deployment.apps:
            continue
        wanted = deployment.apps[0].bundle
        states = device.life.apps.states if device.life else {}
        state = states.get(deployment.apps[0].app)
        if state is not None and state.champion is not None and state.champion.bundle == wanted:
            continue
        answers = [told for told in device.ledger.told.values() if told.seq == row.seq and told.outcome != "committed"]
        if not answers:
            runs = state.champion.version if state and state.champion else "nothing"
            yield f"{row.device} runs {runs}, not {deployment.apps[0].version} of deployment {row.seq}, and never told why"


def _blobs(facts: Facts) -> Iterable[str]:
    """The committed model's bytes are all there and are what their names say."""
    sound: dict[int, bool] = {}  # one object is shared by all devices that hold the same bytes
    for name, device in facts.devices.items():
        for state in (device.life.apps.states if device.life else {}).values():
            if state.champion is None:
                continue
            for blob in dict.fromkeys((*state.champion.blobs, state.champion.weights)):
                data = device.disk.blobs.get(blob)
                if data is None:
                    yield f"{name} lacks blob {blob[:16]} of the model that it runs"
                elif not sound.setdefault(id(data), hashlib.sha256(data).hexdigest() == blob):
                    yield f"{name} has a damaged blob {blob[:16]}"


def _chunks(facts: Facts) -> Iterable[str]:
    """Every chunk message that came to a device is accounted for: lost on purpose, or stored, refused, repeated, late."""
    for name, device in facts.devices.items():
        port, taken = device.ledger.port, device.ledger.transfers
        if port.arrived + port.doubled != port.lost + port.passed + port.forgotten:
            yield f"{name}: {port.arrived} chunks came and {port.doubled} were doubled, but {port.lost} lost and {port.passed} passed"
        handled = taken.stored + taken.repeated + taken.spoiled + taken.late
        if handled != port.passed:
            yield f"{name}: {port.passed} chunks passed its port, {handled} were taken"
        if taken.spoiled > port.corrupted * 2:
            yield f"{name}: {taken.spoiled} chunks were refused, {port.corrupted} had been damaged"


def _codes(facts: Facts) -> Iterable[str]:
    """No error on any device that no fault explains."""
    counts: dict[str, int] = defaultdict(int)
    for device in facts.devices.values():
        for code, count in device.ledger.codes.items():
            counts[code] += count
    return (f"{count} times {code} on devices" for code, count in sorted(counts.items()) if code not in EXPECTED_DEVICE_CODES)


def _refused(facts: Facts) -> Iterable[str]:
    """The host refused nothing that no fault explains."""
    rows = facts.session.scalars(select(Counter).where(Counter.name.startswith("rejected.")))
    return (f"the host refused {row.value} messages as {row.name.removeprefix('rejected.')}" for row in rows
            if row.name not in EXPECTED_HOST_CODES)


# --- reports and windows ------------------------------------------------------------------------------------


def _reports(facts: Facts) -> Iterable[str]:
    """Every outcome that a device made durable is stored once, unchanged, and acknowledged; the host has no other."""
    stored: dict[str, dict[int, ReportRow]] = defaultdict(dict)
    for row in facts.session.scalars(select(ReportRow).where(ReportRow.outcome != "")):
        if row.report in stored[row.device]:
            yield f"report {row.report} of {row.device} is stored twice"
        stored[row.device][row.report] = row
    for name, device in facts.devices.items():
        known = stored.pop(name, {})
        for told in device.ledger.told.values():
            found = known.pop(told.id, None)
            if found is None:
                yield f"{name} told {told.outcome} of deployment {told.seq}, and the host does not know it"
            elif not _same(told, found):
                yield f"report {told.id} of {name} was stored as something else"
            if told.id not in device.ledger.acked:
                yield f"report {told.id} of {name} was never acknowledged"
        yield from (f"the host has report {number} of {name}, which never told it" for number in known)
    yield from (f"the host has outcomes of {name}, which is no device of this run" for name in stored)


def _same(told: Told, row: ReportRow) -> bool:
    return (told.seq, told.bundle, told.outcome, told.code) == (row.seq, row.bundle, row.outcome, row.code)


def _windows(facts: Facts) -> Iterable[str]:
    """Windows received and gaps that the host knows of are what was sent, but for the ends of sessions that were cut."""
    done: dict[int, int] = {row: int(total or 0) for row, total in facts.session.execute(
        select(SeriesRow.window_id, func.sum(SeriesRow.done)).group_by(SeriesRow.window_id))}
    received: dict[str, dict[int, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for number, device, session, window in facts.session.execute(
            select(WindowRow.id, WindowRow.device, WindowRow.session, WindowRow.number)):
        received[device][session][window] = done.get(number, 0)
    accounts = {row.device: row for row in facts.session.scalars(select(DeviceRow))}
    for name, one in facts.devices.items():
        yield from _windows_of(name, one, received[name], accounts.get(name))


def _windows_of(name: str, device: Device, received: Mapping[int, Mapping[int, int]], account: DeviceRow | None) -> Iterable[str]:
    known_gaps = 0
    for session, sent in device.ledger.windows.items():
        got = received.get(session, {})
        strange = [number for number, frames in got.items() if not 0 < number <= len(sent) or sent[number - 1] != frames]
        if strange:
            yield f"{name}: window {strange[0]} of session {session} is not what was sent"
        if got:
            known_gaps += max(got) - min(got) + 1 - len(got)
        if session not in device.ledger.cut and (not got or max(got) != len(sent)):
            yield f"{name}: the last window of session {session}, which went on to the end, is missing"
    if account is None:
        yield f"{name} is not in the host's database"
        return
    total = sum(len(got) for got in received.values())
    if account.windows != total:
        yield f"{name}: the host counts {account.windows} windows and has stored {total}"
    if account.gaps != known_gaps:
        yield f"{name}: the host counts {account.gaps} gaps, there are {known_gaps}"


# --- rollouts -----------------------------------------------------------------------------------------------


def _once(facts: Facts) -> Iterable[str]:
    """No wave was started twice: each device was given each step once, by the journal, on the wire and on the device."""
    issued: dict[str, dict[int, Issued]] = defaultdict(dict)
    steps: dict[tuple[str, str, str], int] = defaultdict(int)
    for row in facts.session.scalars(select(Issued)):
        issued[row.device][row.seq] = row
        steps[row.rollout, row.device, row.kind] += 1
    yield from (f"{kind} of {rollout} was issued {count} times to {name}" for (rollout, name, kind), count in steps.items() if count > 1)
    for name, bodies in facts.tap.deployments.items():
        yield from (f"deployment {seq} of {name} was published with {len(found)} contents" for seq, found in bodies.items()
                    if len(found) > 1)
        yield from (f"deployment {seq} of {name} was published and is not in the journal" for seq in bodies if seq not in issued[name])
    for name, device in facts.devices.items():
        for seq, (_, rollout, bundle) in device.ledger.accepted.items():
            step = issued[name].get(seq)
            if step is None or step.rollout != rollout or step.bundle not in ("", bundle):
                yield f"{name} accepted deployment {seq}, which the journal does not know so"


def _waves(facts: Facts) -> Iterable[str]:
    """A wave begins when the one before it has begun and been judged, never before."""
    for state in facts.rollouts:
        began: dict[int, list[float]] = defaultdict(list)
        for row in facts.session.scalars(select(Issued).where(Issued.rollout == state.plan.id, Issued.kind == "forward")):
            progress = state.devices.get(row.device)
            if progress is None:
                yield f"{state.plan.id} gave a deployment to {row.device}, which is not in its plan"
                continue
            began[progress.wave].append(row.at)
        order = sorted(began)
        if order != list(range(len(order))):
            yield f"{state.plan.id} opened waves {order}"
        for before, after in pairwise(order):
            if max(began[before]) > min(began[after]):
                yield f"{state.plan.id}: wave {after + 1} began before wave {before + 1} was whole"
            passed = sorted(verdict.gate for verdict in state.verdicts if verdict.wave == before and verdict.passed)
            if len(passed) != len(set(passed)) or not {"install", "latency"} <= set(passed):
                yield f"{state.plan.id}: wave {after + 1} began with wave {before + 1} judged by {passed or 'nothing'}"


def _phase(facts: Facts) -> Iterable[str]:
    for state in facts.rollouts:
        if state.phase not in FINAL:
            yield f"rollout {state.plan.id} is still {state.phase}"
    last = facts.rollouts[-1] if facts.rollouts else None
    if last is None or last.phase != facts.expected:
        yield f"the rollout ended {last.phase if last else 'never'}, not {facts.expected}: {last.reason if last else ''}"
    for state in facts.rollouts:
        lost = [name for name, progress in state.devices.items() if progress.status in ("stuck", "silent", "issued", "reverting")]
        yield from (f"{name} was left {state.devices[name].status} by {state.plan.id}: {state.devices[name].code}" for name in lost)


RULES: dict[str, Callable[[Facts], Iterable[str]]] = {
    "every device settled": _settled,
    "every device runs what it should, or told why not": _versions,
    "every committed model is whole": _blobs,
    "every chunk is accounted for": _chunks,
    "every outcome is stored once and acknowledged": _reports,
    "every telemetry window is accounted for": _windows,
    "no deployment was issued twice": _once,
    "no wave began out of order": _waves,
    "the rollout ended as expected": _phase,
    "no unexplained error on a device": _codes,
    "no unexplained refusal by the host": _refused,
}
