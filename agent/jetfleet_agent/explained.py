"""What `jetfleet-agent explain` tells of a model's engines, beside a running agent: read from what the agent last wrote down."""

from __future__ import annotations

import contextlib

from jetfleet_contract.engine_use import Judged
from jetfleet_contract.errors import InputError

from .config import AgentConfig
from .status import ENGINES, model_of
from .supervisor.engine_record import read_judged
from .supervisor.measurements import ChoiceRecord


class Explained(ChoiceRecord, frozen=True):
    """A choice, and what the board does about each engine of the model."""

    engines: tuple[Judged, ...] = ()


def with_engines(config: AgentConfig, records: tuple[ChoiceRecord, ...]) -> tuple[Explained, ...]:
    """Each choice with the engines of the apps that run its model, or are about to."""
    rows: dict[tuple[str, str], list[Judged]] = {}
    for row in read_judged(config.state_dir / ENGINES):
        with contextlib.suppress(InputError):  # the app has gone since
            rows.setdefault(model_of(config, row.app), []).append(row)
    return tuple(Explained(**{name: getattr(one, name) for name in ChoiceRecord.__struct_fields__},
                           engines=tuple(rows.get((one.name, one.version), ()))) for one in records)
