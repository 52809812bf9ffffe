"""Sends signed commands to boards: database <-> command and response topics. Used by serve's control thread.

Each command gets the board's next number before it is signed, durably, so that no number is ever used for two commands. A board obeys it at
most once; no answer by the deadline is an answer of its own kind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from jetfleet_contract import topics
from jetfleet_contract.errors import JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.messages import Command, Instant

from . import intake
from .collector import Incoming
from .intake import VerifyDevice
from .store import commands, fleet, uploads
from .store.database import Transactions
from .store.models import CommandRow

COMMAND_LIFE_S = 300.0

Op = Literal["restart", "bench", "snapshot", "logs", "explain", "secret", "engine-build", "engine-certify"]

_log = logging.getLogger(__name__)


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class CommandDriver:
    """See the module.

    Args:
        sign: gives the envelope of a command. verify: opens what a board signed with its pinned key.
    """

    def __init__(self, database: Transactions, link: Link, sign: Callable[[Command], bytes], verify: VerifyDevice) -> None:
        self._database = database
        self._link = link
        self._sign = sign
        self._verify = verify

    def poll(self, now: Instant) -> None:
        """Send what was asked for, give up what nobody answers. Raises StorageError `store.database`."""
        with self._database.reading() as session:
            idle = not commands.asked(session) and not commands.overdue(session, now.wall)
        if idle:
            return
        outgoing: list[tuple[str, bytes]] = []
        with self._database.session() as session:
            for row in commands.overdue(session, now.wall):
                commands.fail(row, "device.silent", f"board {row.device} did not answer {row.op} in time", now.wall)
            for row in commands.asked(session):
                board = commands.board(session, row.device)
                if board is None:
                    commands.fail(row, "device.unknown", f"no board {row.device} has introduced itself", now.wall)
                elif not self._link.connected:
                    commands.fail(row, "broker.down", "serve has no connection to the broker", now.wall)
                elif not board.online:
                    commands.fail(row, "device.offline", f"board {row.device} is not connected", now.wall)
                else:
                    row.seq = commands.next_seq(session, row.device, now.wall)
                    outgoing += self._signed(row, now)
                    session.flush()
        for device, envelope in outgoing:  # only what is in the database
            self._link.publish(topics.command(device), envelope, qos=1, expiry_s=int(COMMAND_LIFE_S))

    def _signed(self, row: CommandRow, now: Instant) -> list[tuple[str, bytes]]:
        try:
            command = Command(row.device, row.seq or 0, now.wall + COMMAND_LIFE_S, msgspec.convert(row.op, Op), json.loads(row.args))
            envelope = self._sign(command)
        except (JetfleetError, msgspec.ValidationError) as error:
            what = error.what if isinstance(error, JetfleetError) else str(error)
            commands.fail(row, error.code if isinstance(error, JetfleetError) else "command.op", what, now.wall)
            return []
        row.state = commands.SENT
        return [(row.device, envelope)]

    def on_response(self, message: Incoming) -> None:
        """Take an answer. What is forged, unasked for or another answer to an answered command is refused and kept in part.

        Raises:
            StorageError: `store.database`.
        """
        try:
            self._take(message)
        except (MalformedError, UntrustedError) as error:
            with self._database.session() as session:
                fleet.save_rejected(session, message.topic, message.payload, error.code, intake.clean(error.what, 500), message.at)

    def _take(self, message: Incoming) -> None:
        device = topics.device_of(message.topic)
        with self._database.session() as session:
            response = intake.response_from(message.topic, message.payload, uploads.key_of(session, device), self._verify)
            row = commands.find(session, device, response.seq)
            if row is None:
                raise UntrustedError("command.unknown", f"board {device} answers command {response.seq}, which was never sent")
            if row.state != commands.ANSWERED:
                commands.answer(row, response, message.at)
            elif (row.code, row.detail, row.body) != (response.code, response.detail, response.body):
                raise UntrustedError("command.answered", f"board {device} answers command {response.seq} a second time, otherwise")
