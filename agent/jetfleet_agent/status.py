"""`jetfleet-agent status`: what the journal says runs here. Reads only, so it may be asked beside a running agent."""

from __future__ import annotations

from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import AppState, Message
from jetfleet_contract.slots import app_state

from . import state_lock
from .config import AgentConfig
from .supervisor.journal import Journal

JOURNAL = "journal"  # below the state folder
CHOOSER = "chooser"
ENGINES = "engines"


class Status(Message, frozen=True):
    """`running` is whether an agent holds the state folder now; `previous` are the versions that each app could go back to."""

    device: str
    running: bool
    process: str
    session: int
    seq: int
    rollout: str
    apps: tuple[AppState, ...]
    previous: dict[str, str]


def read_status(config: AgentConfig) -> Status:
    """The state of the board as it was last persisted."""
    journal = Journal(config.state_dir / JOURNAL)
    board = journal.board()
    running = state_lock.is_held(config.state_dir)
    states = [journal.app(name) for name in journal.apps()]
    return Status(
        device=config.device, running=running, process=state_lock.holder(config.state_dir) if running else "",
        session=board.session, seq=board.seq, rollout=board.deployment.rollout if board.deployment else "",
        apps=tuple(app_state(state) for state in states),
        previous={state.app: state.previous.version for state in states if state.previous})


def model_of(config: AgentConfig, app: str) -> tuple[str, str]:
    """Name and version of the model that an app runs, or is about to run.

    Raises:
        InputError: `app.unknown`.
    """
    journal = Journal(config.state_dir / JOURNAL)
    known = journal.apps()
    if app not in known:
        raise InputError("app.unknown", f"there is no app {app[:80]!r} on this board", where=str(config.state_dir),
                         remedy=f"apps here: {', '.join(known) or 'none yet'}")
    state = journal.app(app)
    slot = state.challenger or state.champion
    return (slot.name, slot.version) if slot else ("", "")
