"""Results to somebody's web server: batches of JSON by POST, from a thread a webhook, bounded, tried again with back-off.

    POST PATH
    Content-Type: application/json
    Idempotency-Key: 32 hex digits, the same for every try of one batch
    Jetfleet-Device: DEVICE
    Jetfleet-App: APP

    [{"app": ..., "source": ..., "frame": ..., "at": ..., "detections": [...]}, ...]

2xx takes the batch. 408, 425, 429, 5xx and anything that is no answer: the same batch again, later, and not before ``Retry-After`` says.
Anything else refuses the batch for good; redirects are not followed, because another server was not named by whoever signed the settings.
While a batch waits the newest results are kept and the oldest go, counted. What is in memory is lost with the process. Addresses, their
passwords and queries are never logged: a fault names the host only.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import msgspec

from jetfleet_contract import __version__
from jetfleet_contract.errors import InputError, JetfleetError, TransportError
from jetfleet_contract.policy import backoff
from jetfleet_contract.sink_rules import is_http

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
MAX_WAITING = 5000
MAX_WAITING_BYTES = 8 << 20
MAX_BODY_BYTES = 1 << 20
MAX_ANSWER_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 300.0
BACKOFF_CAP_S = 60.0
_LATER = (408, 425, 429)


class Answered(msgspec.Struct, frozen=True):
    """A server's answer: its status and the seconds that it asks to wait (0: it does not say)."""

    status: int
    retry_after_s: float = 0.0

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def may_try_again(self) -> bool:
        return self.status in _LATER or self.status >= 500


class Address:
    """Where to post. Its `repr` names the host only.

    Raises:
        InputError: `webhook.url`.
    """

    def __init__(self, url: str) -> None:
        if not is_http(url):
            raise InputError("webhook.url", "a webhook's address is not http:// or https:// with a host",
                             remedy="the secret holds the whole address: https://host/path")
        parts = urlsplit(url)
        self.url = url
        self.is_tls = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.is_tls else 80)
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.headers: dict[str, str] = {}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()

    def __repr__(self) -> str:
        return f"Address({self.host})"


class Poster:
    """One connection, kept open. Used by one thread.

    Raises:
        InputError: `webhook.tls` when the CA's file cannot be used.
    """

    def __init__(self, address: Address, ca: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._tls = _tls(ca) if address.is_tls else None
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes, headers: dict[str, str]) -> Answered:
        """One try.

        Raises:
            TransportError: `webhook.unreachable`, `webhook.slow`, `webhook.tls`, `webhook.broken`.
        """
        try:
            return self._ask(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._error(error) from None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _ask(self, body: bytes, headers: dict[str, str]) -> Answered:
        """Once more on a new connection when the server had closed the kept one."""
        kept = self._connection is not None
        try:
            return self._send(body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self.close()
            if not kept:
                raise
            return self._send(body, headers)

    def _send(self, body: bytes, headers: dict[str, str]) -> Answered:
        address = self._address
        if self._connection is None:
            self._connection = (
                http.client.HTTPSConnection(address.host, address.port, timeout=self._timeout_s, context=self._tls)
                if self._tls is not None else http.client.HTTPConnection(address.host, address.port, timeout=self._timeout_s))
        self._connection.request("POST", address.target, body, {**headers, **address.headers})
        response = self._connection.getresponse()
        answered = Answered(response.status, _seconds(response.getheader("Retry-After")))
        response.read(MAX_ANSWER_BYTES)
        if not response.isclosed() or response.will_close:
            self.close()
        return answered

    def _error(self, error: Exception) -> TransportError:
        host = self._address.host
        if isinstance(error, TimeoutError):
            return TransportError("webhook.slow", f"webhook at {host} does not answer within {self._timeout_s:.0f} s", where=host)
        if isinstance(error, ssl.SSLError):
            return TransportError("webhook.tls", f"webhook at {host} cannot be trusted: {error.reason or 'TLS failed'}", where=host,
                                  remedy="check [results] webhook_ca and the server's certificate")
        if isinstance(error, http.client.HTTPException):
            return TransportError("webhook.broken", f"webhook at {host} does not speak HTTP: {type(error).__name__}", where=host)
        return TransportError("webhook.unreachable", f"webhook at {host} cannot be reached: {type(error).__name__}", where=host)


class Webhook:
    """One webhook of one app; see the module. `offer` is the control thread's, `counts` anybody's.

    Args:
        name: for logs, without any address.
        most: results of one request; `wait_s` the time to gather them.
        fresh_key: a new idempotency key; `unit`: random numbers in 0..1 for the back-off.
    """

    def __init__(self, name: str, address: Address, poster: Poster, headers: dict[str, str], *, most: int, wait_s: float,
                 fresh_key: Callable[[], str], unit: Callable[[], float], base_s: float = 1.0) -> None:
        self._name = name
        self._address = address
        self._poster = poster
        self._headers = {"Content-Type": "application/json", "User-Agent": f"jetfleet-agent/{__version__}", **headers}
        self._most = most
        self._wait_s = wait_s
        self._fresh_key = fresh_key
        self._unit = unit
        self._base_s = base_s
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._trouble = ""
        self._sent = self._overflow = self._refused = self._unsent = 0
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def offer(self, result: bytes) -> None:
        """Queue one result's JSON at once; the oldest go when there is no room."""
        with self._changed:
            self._waiting.append(result)
            self._waiting_bytes += len(result)
            while len(self._waiting) > MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
                self._waiting_bytes -= len(self._waiting.popleft())
                self._overflow += 1
            if len(self._waiting) in (1, self._most):
                self._changed.notify()

    def counts(self) -> dict[str, int]:
        """Results sent, and dropped by cause, since it began."""
        return {"sent": self._sent, "overflow": self._overflow, "refused": self._refused, "unsent": self._unsent}

    def close(self, wait_s: float = 0.0) -> None:
        """Try what waits once more, then end; wait at most so long for that."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(wait_s)

    # --- the webhook's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._gather()) is not None:
                self._deliver(batch)
        finally:
            self._poster.close()

    def _gather(self) -> list[bytes] | None:
        """The next batch; None when closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: len(self._waiting) >= self._most or self._closing, self._wait_s)
            batch: list[bytes] = []
            size = 0
            while self._waiting and len(batch) < self._most and (not batch or size + len(self._waiting[0]) < MAX_BODY_BYTES):
                batch.append(self._waiting.popleft())
                size += len(batch[-1]) + 1
                self._waiting_bytes -= len(batch[-1])
            return batch or None

    def _deliver(self, batch: list[bytes]) -> None:
        body = b"[" + b",".join(batch) + b"]"
        headers = {**self._headers, "Idempotency-Key": self._fresh_key()}
        attempt = 0
        while True:
            wait_s = self._tried(body, headers, len(batch), attempt)
            attempt += 1
            with self._changed:
                if wait_s is None:
                    return
                if self._changed.wait_for(lambda: self._closing, wait_s):
                    self._unsent += len(batch) + len(self._waiting)
                    self._waiting.clear()
                    return

    def _tried(self, body: bytes, headers: dict[str, str], results: int, attempt: int) -> float | None:
        """One try; seconds until the next, None when there is none: taken, or refused for good."""
        pause = backoff(attempt, self._unit(), base_s=self._base_s, cap_s=BACKOFF_CAP_S)
        try:
            answered = self._poster.post(body, headers)
        except TransportError as error:
            self._say(error)
            return pause
        if answered.is_taken:
            self._sent += results
            self._say(None)
            return None
        self._say(_refusal(answered.status, self._address.host))
        if answered.may_try_again:
            return max(pause, min(answered.retry_after_s, MAX_RETRY_AFTER_S))
        self._refused += results
        return None

    def _say(self, error: JetfleetError | None) -> None:
        """Each trouble once, and its end."""
        code = error.code if error is not None else ""
        if code != self._trouble:
            if error is not None:
                log.warning("%s: %s [%s]", self._name, error.what, error.code)
            else:
                log.info("%s: works again", self._name)
            self._trouble = code


def _refusal(status: int, host: str) -> TransportError:
    if 300 <= status < 400:
        return TransportError("webhook.redirect", f"webhook at {host} redirects elsewhere, which is not followed", where=host,
                              remedy="name the final address in the sink's url")
    return TransportError("webhook.status", f"webhook at {host} answers with status {status}", where=host)


def _seconds(header: str | None) -> float:
    """``Retry-After`` in seconds; its other form, a date, would need a clock that both sides trust."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(int(header or "0")))
    return 0.0


def _tls(ca: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    except (OSError, ssl.SSLError) as error:
        raise InputError("webhook.tls", f"cannot use the CA of webhooks: {type(error).__name__}", where=ca,
                         remedy="check [results] webhook_ca: a readable PEM file") from None
    return context
