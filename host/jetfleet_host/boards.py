"""Board files on the host: found by name, read, checked by the contract.

In a checkout they lie in ``firmware_configs/``; in an installed wheel beside the agent's modules.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

import jetfleet_contract
from jetfleet_contract.boards import MAX_BOARD_BYTES, BoardFile, board_from
from jetfleet_contract.errors import InputError

_PACKAGES = Path(jetfleet_contract.__file__).resolve().parent.parent
_FOLDERS = (_PACKAGES / "jetfleet_agent" / "firmware_configs", _PACKAGES.parent / "firmware_configs")


def board_names() -> tuple[str, ...]:
    """The names of all board files, sorted."""
    return tuple(sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.toml")}))


def load_board(name: str) -> BoardFile:
    """The board file of that name.

    Raises:
        InputError: `board.unknown` with the nearest names, or `board.bad`.
    """
    path = next((folder / f"{name}.toml" for folder in _FOLDERS if name in board_names() and (folder / f"{name}.toml").is_file()), None)
    if path is None:
        raise _unknown(name)
    data = path.read_bytes()
    if len(data) > MAX_BOARD_BYTES:
        raise InputError("board.bad", f"the board file has {len(data)} bytes, the limit is {MAX_BOARD_BYTES}", where=str(path))
    try:
        mapping = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("board.bad", f"the board file is not TOML: {error}", where=str(path)) from None
    return board_from(mapping, where=str(path))


def _unknown(name: str) -> InputError:
    names = board_names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known boards: {', '.join(names) or 'none'}"
    return InputError("board.unknown", f"there is no board {name[:80]!r}", remedy=hint)
