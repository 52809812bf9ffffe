"""What the board's own config says of an app that an existing program runs: ``[external.APP]``. Never taken from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

Command = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...], Meta(max_length=64)]
Limit = Annotated[float, Meta(gt=0, le=86_400)]


class ExternalApp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Commands are lists, run without a shell, with what they need to know in their environment (docs/external.md).

    `folder` holds the releases, the symlink ``current`` and the health socket. `prepare` makes a release ready (builds an engine);
    `switch` makes the program use ``current``; `rollback` the same when it is an older release again (empty: `switch`); `stop` ends the
    program. `program`, where set, is started and ended by us instead. Limits in seconds: `prepare_s` and `hook_s` for commands,
    `healthy_s` for the first good health message, `quiet_s` between two.
    """

    folder: str
    prepare: Command = ()
    switch: Command = ()
    rollback: Command = ()
    stop: Command = ()
    program: Command = ()
    prepare_s: Limit = 1800.0
    hook_s: Limit = 60.0
    healthy_s: Limit = 60.0
    quiet_s: Limit = 30.0

    @property
    def start_s(self) -> float:
        """Within which a release runs, or has failed."""
        return self.prepare_s + self.hook_s + self.healthy_s + 30.0

    def under(self, folder: Path) -> ExternalApp:
        """With `folder` made absolute."""
        return msgspec.structs.replace(self, folder=str(folder / self.folder))
