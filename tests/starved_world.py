"""A fleet on a machine that has far too little time for it: boards, host and broker stand still again and again, for seconds."""

from __future__ import annotations

from collections.abc import Callable

from transfer_world import World

from jetfleet_contract import rounds

BROKER_QUEUE = 1000


class Stalls:
    """When one process runs: by turns it runs and stalls, for times that are exponentially distributed (means in seconds)."""

    def __init__(self, world: World, run_s: float, stall_s: float, most_s: float) -> None:
        self._draw, self._run_s, self._stall_s, self._most_s = world.random, run_s, stall_s, most_s
        self._stalled = (0.0, 0.0)  # the last stall that was drawn; times before it were asked for already

    def awake(self, at: float) -> float:
        """The first moment from `at` on at which it runs; `at` never decreases."""
        while self._stall_s and at >= self._stalled[1]:
            begins = self._stalled[1] + self._draw.expovariate(1.0 / self._run_s)
            self._stalled = (begins, begins + min(self._most_s, self._draw.expovariate(1.0 / self._stall_s)))
        return self._stalled[1] if self._stalled[0] <= at < self._stalled[1] else at


class StarvedWorld(World):
    """Every board, the host and the broker stall, each by itself; the broker drops what a board leaves lying beyond 1000 messages.

    `stall_s` is the mean of a stall, `most_s` its bound; a process runs for `run_s` between two of them. The host thinks in the first 5 s
    that `expected` boards will ask.
    """

    def __init__(self, seed: int, count: int, devices: int, *, stall_s: float, most_s: float = 8.0, run_s: float = 0.3, loss: float = 0.0,
                 grant_every_s: float = 0.008, expected: int = 0) -> None:
        self.expected = expected
        self.stalls: dict[str, Stalls] = {}
        self.pending: dict[str, int] = {}
        self.dropped = 0
        self.pauses = (run_s, stall_s, most_s)
        super().__init__(seed, count, devices, loss, 0.0, 0.0, grant_every_s=grant_every_s)

    def stalls_of(self, process: str) -> Stalls:
        if process not in self.stalls:
            self.stalls[process] = Stalls(self, *self.pauses)
        return self.stalls[process]

    def when_awake(self, process: str, what: Callable[[], None]) -> None:
        """Do `what` as soon as the process runs; the order is kept, because what waits for one wake-up was put there in order."""
        wake = self.stalls_of(process).awake(self.now)
        if wake <= self.now:
            what()
        else:
            self.at(wake - self.now, lambda: self.when_awake(process, what))

    def carry(self, name: str, arrive: Callable[[], None], loss: float, up: bool = False) -> None:
        if self.random.random() < loss:
            return
        if up:
            self.at(0.001, lambda: self.when_awake("broker", lambda: self.when_awake("host", arrive)))
            return
        self.at(0.001, lambda: self.when_awake("broker", lambda: self.queued(name, arrive)))

    def queued(self, name: str, arrive: Callable[[], None]) -> None:
        waiting = self.pending.get(name, 0)
        if waiting >= BROKER_QUEUE:
            self.dropped += 1
            return
        self.pending[name] = waiting + 1

        def read() -> None:
            self.pending[name] -= 1
            arrive()

        self.when_awake(name, read)

    def wake(self, name: str, due: float) -> None:
        self.when_awake(name, lambda: super(StarvedWorld, self).wake(name, due))

    def boot(self, name: str) -> None:
        self.when_awake(name, lambda: super(StarvedWorld, self).boot(name))

    def grant(self) -> None:
        self.when_awake("host", super().grant)

    def host(self, lane: int | str, event: rounds.SenderEvent) -> None:
        expected = self.expected if self.now < 5.0 else 0
        super().host(lane, rounds.Grant(event.chunks, expected) if isinstance(event, rounds.Grant) else event)

    @property
    def copies(self) -> float:
        return self.published / self.count
