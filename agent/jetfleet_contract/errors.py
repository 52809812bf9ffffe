"""The error tree. Every error names what is wrong, where, and what to do about it.

    JetfleetError
        InputError          the user's file, folder, option or config is wrong
        MalformedError      a peer's bytes do not follow the contract
        UntrustedError      signature, expiry, rollback or digest check failed
        IncompatibleError   a board, runtime or model cannot do what was asked
        OrderError          our own code called a state machine out of order
        StorageError        disk full, unreadable, unwritable
        TransportError      broker or mirror cannot be reached or refuses
        SourceError         a camera, file or folder cannot be read
        RuntimeFailure      a model failed to load or to run

`code` is stable: it is counted in telemetry, sent in reports and asserted in tests. `exit_code` is what the
command line ends with.
"""

from __future__ import annotations


class JetfleetError(Exception):
    """Base of all errors that a user may see.

    Args:
        code: stable, lower-case, dotted: ``bundle.truncated``.
        what: one sentence that names the thing.
        where: path, topic, option or node; empty when `what` says it.
        remedy: what the reader can do now.
    """

    exit_code = 1

    def __init__(self, code: str, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.remedy = remedy

    def diagnostics(self) -> str:
        """The message as the command line prints it: what, where, what to do."""
        lines = [f"{self.what} [{self.code}]"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  try:   {self.remedy}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.diagnostics()

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive pickling by default
        return (_rebuild, (type(self), self.code, self.what, self.where, self.remedy))


def _rebuild(kind: type[JetfleetError], code: str, what: str, where: str, remedy: str) -> JetfleetError:
    return kind(code, what, where=where, remedy=remedy)


class InputError(JetfleetError):
    exit_code = 2


class MalformedError(JetfleetError):
    exit_code = 3


class UntrustedError(JetfleetError):
    exit_code = 4


class IncompatibleError(JetfleetError):
    exit_code = 5


class OrderError(JetfleetError):
    exit_code = 6


class StorageError(JetfleetError):
    exit_code = 7


class TransportError(JetfleetError):
    exit_code = 8


class SourceError(JetfleetError):
    exit_code = 9


class RuntimeFailure(JetfleetError):  # noqa: N818 - RuntimeError is Python's own
    exit_code = 10
