"""Makes slot_states_v1.json: stored states of the A/B machine, one a phase, as the release before `release` and `downgrade` wrote them.

    python tests/vectors/make_slot_states.py > tests/vectors/slot_states_v1.json

Run it only to ADD vectors under another name: a board may have slept since the release that wrote these.
"""

from __future__ import annotations

import json

import msgspec
from slot_worlds import World

from jetfleet_contract import slot_records as r


def states() -> dict[str, object]:
    """A board that runs one model and is on its way to a second one, in every phase; and a first install."""
    found: dict[str, r.AppSlots] = {phase: World().install().go(phase, 2, "b").state for phase in r.PHASES if phase != "idle"}
    found["idle"] = World().install().install("b", 2).state
    found["first"] = World().go("trial").state
    return {name: json.loads(msgspec.json.encode(state)) for name, state in sorted(found.items())}


if __name__ == "__main__":
    print(json.dumps(states(), indent=1, sort_keys=True))
