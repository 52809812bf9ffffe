"""Many receivers against one host over a bad network, in virtual time: the real machines and codecs, a network that loses, repeats,
delays and reorders, and boards that read slowly."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from jetfleet_contract import rounds, transfer
from jetfleet_contract.chunks import Bitmap
from jetfleet_contract.messages import encode

CHUNK = 65536
GRANT = 8
GRANT_EVERY_S = 0.002
MAX_LANES = 8


class Line:
    """What the broker has for one board: carried in order at `chunks_s`, when that is not 0."""

    def __init__(self, chunks_s: float) -> None:
        self.chunks_s = chunks_s
        self.free_at = 0.0
        self.waiting = 0
        self.most = 0


class World:
    """A discrete-event simulation. `slow` maps boards to the chunks per second that they take."""

    def __init__(self, seed: int, count: int, devices: int, loss: float, jitter_s: float, repeat: float,
                 slow: dict[str, float] | None = None, few: int = rounds.FEW, grant_every_s: float = GRANT_EVERY_S) -> None:
        self.random = random.Random(seed)
        self.count, self.loss, self.jitter_s, self.repeat = count, loss, jitter_s, repeat
        self.now = 0.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.grant_every_s = grant_every_s
        self.senders: dict[int | str, rounds.Sender] = {}
        self.disks = {f"d{n}": Bitmap.full(count) for n in range(devices)}
        self.boards = {name: transfer.receiver(count, CHUNK) for name in self.disks}
        self.lines: dict[str, Line] = {name: Line(rate) for name, rate in (slow or {}).items()}
        self.few = few
        self.lanes = 0
        self.published = 0
        self.received: dict[str, int] = {}
        self.done_at: dict[str, float] = {}
        self.observed: list[tuple[float, rounds.Observe]] = []
        self.refused: list[rounds.Refuse] = []
        for name in self.boards:
            self.at(self.random.random() * 0.02, partial(self.boot, name))
        self.at(0.0, self.grant)

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + delay, next(self.order), what))

    # --- boards -----------------------------------------------------------------------------------------------

    def join(self, name: str, missing: Bitmap | None = None) -> None:
        """One more board, whose disk lacks `missing` (all, when None)."""
        self.disks[name] = Bitmap.full(self.count) if missing is None else missing
        self.boot(name)

    def boot(self, name: str) -> None:
        self.boards[name] = transfer.receiver(self.count, CHUNK)
        self.board(name, transfer.Up(self.random.random()))
        self.board(name, transfer.Opened(self.disks[name], self.random.random()))

    def board(self, name: str, event: transfer.ReceiverEvent) -> None:
        state, effects = transfer.step_receiver(self.boards[name], event, self.now)
        self.boards[name] = state
        for effect in effects:
            if isinstance(effect, transfer.Ask):
                payload = transfer.encode_want(effect.want)
                self.carry(name, partial(self.heard, name, payload), self.loss / 4, up=True)
            elif isinstance(effect, transfer.Check):
                self.at(0.01, lambda: self.board_if_checking(name))
        due = state.wake_at
        if due != transfer.NEVER:
            self.at(max(0.0, due - self.now), lambda: self.wake(name, due))

    def board_if_checking(self, name: str) -> None:
        if self.boards[name].phase == "checking":
            self.done_at[name] = self.now
            self.board(name, transfer.Checked())

    def wake(self, name: str, due: float) -> None:
        if name in self.boards and self.boards[name].wake_at == due:
            self.board(name, transfer.Tick(self.random.random()))

    def chunk(self, name: str, turn: int, index: int, lane: int | str) -> None:
        board = self.boards.get(name)
        if board is None or board.phase in ("opening", "offline"):
            return
        self.received[name] = self.received.get(name, 0) + 1
        if board.phase == "checking":
            return
        self.disks[name] = self.disks[name].without(index)
        self.board(name, transfer.Stored(turn if lane in (name, board.shared_lane) else board.round, index))

    def mark(self, name: str, payload: bytes, lane: int | str) -> None:
        board = self.boards.get(name)
        if board is not None and lane in (name, board.shared_lane):
            mark = transfer.decode_mark(payload)
            if name not in mark.stay:
                self.board(name, transfer.Marked(mark, self.random.random()))

    # --- the network ------------------------------------------------------------------------------------------

    def carry(self, name: str, arrive: Callable[[], None], loss: float, up: bool = False) -> None:
        line = self.lines.get(name)
        if line is not None and not up:
            line.waiting += 1
            line.most = max(line.most, line.waiting)
            line.free_at = max(self.now, line.free_at) + 1.0 / line.chunks_s

            def leave() -> None:
                line.waiting -= 1
                arrive()

            self.at(line.free_at - self.now, leave)
            return
        if self.random.random() >= loss:
            self.at(0.001 + self.random.random() * self.jitter_s, arrive)
        if self.random.random() < self.repeat:
            self.at(0.001 + self.random.random() * self.jitter_s * 3, arrive)

    def everybody(self, lane: int | str, deliver: Callable[[str], None]) -> None:
        for name, board in self.boards.items():
            if lane in (name, board.shared_lane):
                self.carry(name, partial(deliver, name), self.loss)

    # --- the host, as a distributor drives its senders ----------------------------------------------------------

    def heard(self, name: str, payload: bytes) -> None:
        want = transfer.decode_want(payload, self.count)
        lane = name if want.apart else want.lane
        for other in [other for other, sender in self.senders.items() if other != lane and name in sender.wanters | sender.charges]:
            self.senders[lane], (self.senders[other], effects) = rounds.handed_over(self.senders[other], self.sender(lane), name, self.now)
            self.act(other, effects)
        self.host(lane, rounds.Wanted(name, want))

    def sender(self, lane: int | str) -> rounds.Sender:
        if lane not in self.senders:
            self.senders[lane] = rounds.sender(self.count, 1 + self.random.randrange(1 << 30), self.few)
        return self.senders[lane]

    def host(self, lane: int | str, event: rounds.SenderEvent) -> None:
        self.senders[lane], effects = rounds.step_sender(self.sender(lane), event, self.now)
        self.act(lane, effects)

    def act(self, lane: int | str, effects: tuple[rounds.SenderEffect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, rounds.Send):
                self.publish(lane, effect)
            elif isinstance(effect, rounds.Announce):
                self.announce(effect.device or lane, effect.mark)
            elif isinstance(effect, rounds.Move):
                self.move(lane, effect)
            elif isinstance(effect, rounds.Observe):
                self.observed.append((self.now, effect))
            else:
                self.refused.append(effect)

    def move(self, lane: int | str, move: rounds.Move) -> None:
        """To a free lane; when there is none, or the lane is one board's own, they ask again where they are."""
        resting = (number for number in range(MAX_LANES) if number not in self.senders or self.senders[number].phase == "idle")
        free = next((number for number in resting if number != lane), None)
        if free is not None and isinstance(lane, int):
            self.lanes += 1
            self.announce(lane, transfer.RoundMark(move.round, 0, "move", 0, lane=free, stay=move.stay))

    def publish(self, lane: int | str, send: rounds.Send) -> None:
        for index in send.indices:
            self.published += 1
            if send.device:
                self.carry(send.device, partial(self.chunk, send.device, send.round, index, send.device), self.loss)
            else:
                self.everybody(lane, lambda name, index=index: self.chunk(name, send.round, index, lane))  # type: ignore[misc]

    def announce(self, lane: int | str, mark: transfer.RoundMark) -> None:
        payload = encode(mark)
        self.everybody(lane, lambda name: self.mark(name, payload, lane))

    def grant(self) -> None:
        for lane in list(self.senders):
            self.host(lane, rounds.Grant(GRANT))
        self.at(self.grant_every_s, self.grant)

    def run(self, until_s: float) -> bool:
        """True when every board is done in time."""
        while self.agenda and self.now < until_s:
            if all(board.phase == "done" for board in self.boards.values()):
                return True
            self.now, _, what = heapq.heappop(self.agenda)
            what()
        return all(board.phase == "done" for board in self.boards.values())
