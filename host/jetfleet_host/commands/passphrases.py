"""How commands come by a passphrase or a secret: from a file, a prompt or standard input, never from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from jetfleet_contract.errors import InputError

MAX_SECRET_BYTES = 4096


def passphrase_from(file: Path | None, *, ask: bool, confirm: bool = False) -> bytes | None:
    """The first line of `file`; else, when `ask`, what is typed at a prompt; else None.

    Raises:
        InputError: `keys.passphrase` for an empty or unreadable one.
    """
    if file is None and not ask:
        return None
    try:
        text = file.read_text(encoding="utf-8").partition("\n")[0] if file else _typed(confirm)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("keys.passphrase", f"the passphrase cannot be read ({type(error).__name__})", where=str(file),
                         remedy="put it on the first line of a text file") from None
    if not text:
        raise InputError("keys.passphrase", "an empty passphrase protects nothing", where=str(file or "prompt"), remedy="give a long one")
    return text.encode()


def secret_from_input(prompt: str) -> bytes:
    """A secret typed at a prompt, or piped in; one line end at its end is cut off. InputError `secret.size`."""
    typed = sys.stdin.isatty()
    data = str(typer.prompt(prompt, hide_input=True)).encode() if typed else sys.stdin.buffer.read(MAX_SECRET_BYTES + 2)
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not 0 < len(data) <= MAX_SECRET_BYTES:
        raise InputError("secret.size", f"a secret has 1 to {MAX_SECRET_BYTES} bytes", where="standard input",
                         remedy="pipe it in, or type it at the prompt")
    return data


def _typed(confirm: bool) -> str:
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm))
