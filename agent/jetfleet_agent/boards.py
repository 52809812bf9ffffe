"""Board files on the device: found by name, read, checked by the contract; and the board that this machine is.

In a checkout they lie in ``firmware_configs/``; in an installed wheel beside this module.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jetfleet_contract.boards import MAX_BOARD_BYTES, BoardFile, board_from, chosen_board
from jetfleet_contract.errors import IncompatibleError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

_HERE = Path(__file__).resolve().parent
FOLDERS = (_HERE / "firmware_configs", _HERE.parent.parent / "firmware_configs")


def board_names() -> tuple[str, ...]:
    """The names of all board files, sorted."""
    return tuple(sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")}))


def load_board(name: str) -> BoardFile:
    """The board file of that name.

    Raises:
        InputError: `board.unknown` with the nearest names, or `board.bad`.
    """
    names = board_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known boards: {', '.join(names) or 'none'}"
        raise InputError("board.unknown", f"there is no board {name[:80]!r}", remedy=hint)
    return read_board(next(path for folder in FOLDERS if (path := folder / f"{name}.toml").is_file()))


def read_board(path: Path) -> BoardFile:
    """Read and check one board file, or InputError `board.bad`."""
    data = path.read_bytes()
    if len(data) > MAX_BOARD_BYTES:
        raise InputError("board.bad", f"the board file has {len(data)} bytes, the limit is {MAX_BOARD_BYTES}", where=str(path))
    try:
        mapping = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("board.bad", f"the board file is not TOML: {error}", where=str(path)) from None
    return board_from(mapping, where=str(path))


def detect_board(arch: str, compatible: Sequence[str], isa: Sequence[str] = (), drivers: Sequence[str] = ()) -> BoardFile:
    """The board file that fits this machine: by its device tree, else by driver and CPU flags, else the plain class of its architecture.

    Args:
        arch: as ``uname -m`` says it.
        compatible: the device tree's compatible list, empty on machines without one.
        isa: CPU flags as /proc/cpuinfo spells them. drivers: of accelerators, as `capability.Machine` has them.

    A board on which the agent does not run yet with its accelerator is taken as the plain class of its architecture, with a warning.

    Raises:
        IncompatibleError: `board.unsupported` when no file fits.
    """
    boards = [load_board(name) for name in board_names()]
    named = chosen_board(boards, arch, compatible, isa, drivers)
    if named is not None and named.support != "agent":
        log.warning("the agent does not use %s yet: %s; it is taken as a plain %s machine", named.title, named.why_not, arch)
    board = chosen_board([one for one in boards if one.support == "agent"], arch, compatible, isa, drivers)
    if board is None:
        raise IncompatibleError("board.unsupported", f"no board file fits a machine of architecture {arch}",
                                remedy=f"name one with --board; known boards: {', '.join(board_names())}")
    return board
