"""The host's link to the broker: the same shape as the agent's, which it must not import. Only this file and `sim.links` import paho.

The socket is driven through paho's public calls for foreign event loops, so that every paho call is made by one thread,
what waits to be sent is bounded here, and back-off has jitter. A lost link comes back for ever; subscriptions are made again
before `on_up` is called, and QoS 1 messages that were not acknowledged are sent again.

paho does not act on what a broker says of itself in its CONNACK (but for the keep-alive), so it is done here: no more messages without an
acknowledgement than the broker takes, QoS and the retain flag lowered to what it knows, and nothing sent that it would answer by closing
the connection.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jetfleet_contract import broker_limits
from jetfleet_contract.broker_limits import BrokerLimits, PublishRate, refusal, tightest
from jetfleet_contract.errors import InputError, TransportError

if TYPE_CHECKING:
    import paho.mqtt.client as paho

CONNECT_TIMEOUT_S = 10.0
MIN_BACKOFF_S = 0.25
MAX_BACKOFF_S = 30.0
FLUSH_S = 2.0
OUTBOX_MESSAGES = 4096
OUTBOX_BYTES = 8 << 20
INFLIGHT = 64
POLL_S = 0.5
MAX_WARNED = 256

_log = logging.getLogger(__name__)


class BrokerSettings(msgspec.Struct, frozen=True):
    """Where the broker is. A `ca` file turns TLS on; `cert` and `key` are this client's own. `password_file` holds one line. `limits` is
    what is known of the broker before it speaks."""

    host: str
    port: int
    username: str = ""
    password_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    keepalive_s: int = 30
    limits: BrokerLimits = BrokerLimits()


class _Item(msgspec.Struct, frozen=True):
    """One thing to do in the link's thread, in order: publish, subscribe or unsubscribe."""

    op: str
    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    expiry_s: int = 0


class MqttLink:
    """One client that never gives up.

    `on_message(topic, payload)`, `on_up()` and `on_down(reason)` are called from the link's thread and must be quick.
    `on_down` comes once for each loss, and once when the first attempt fails or its reason changes. `refused` counts, by stable code,
    what the broker does not take: `broker.packet-size` and `broker.topic` were not sent, `broker.retain` was sent without the flag,
    `broker.acl`, `broker.quota` and `broker.refused` came back.

    Raises:
        InputError: `broker.secret` or `broker.tls` when a named file cannot be used.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self._settings = settings
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._client_id = client_id
        self._will = will
        self._limits = settings.limits
        self._learned = BrokerLimits()
        self._rate = PublishRate(settings.limits.max_publishes_s)
        self._largest = self._proven = 0
        self._refused: collections.Counter[str] = collections.Counter()
        self._warned: set[tuple[str, str]] = set()
        self._client = self._make_client()
        self._lock = threading.Lock()
        self._outbox: collections.deque[_Item] = collections.deque()
        self._outbox_bytes = 0
        self._unacked: dict[int, tuple[_Item, int]] = {}  # and the largest payload that was sent up to it
        self._topics: dict[str, int] = {}
        self._up = False
        self._stopping = threading.Event()
        self._beat = 0.0  # when the link's thread last made progress
        self._trouble = ""
        self._lost = ""
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{client_id}", daemon=True)

    # --- called from any thread -------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._up

    @property
    def trouble(self) -> TransportError | None:
        """Why the link is down, or None."""
        if self._up or not self._trouble:
            return None
        return TransportError("broker.down", f"no connection to the broker: {self._trouble}",
                              where=f"{self._settings.host}:{self._settings.port}",
                              remedy="start the broker, or correct host, port and credentials; the link is tried again for ever")

    @property
    def backlog(self) -> int:
        """Bytes that wait in the outbox."""
        return self._outbox_bytes

    @property
    def limits(self) -> BrokerLimits:
        """What the broker takes: what is configured, and what it said when the link last came up."""
        return self._limits

    @property
    def refused(self) -> collections.Counter[str]:
        """How often what was refused, by stable code."""
        with self._lock:
            return self._refused.copy()

    def refuses(self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int = 0) -> TransportError | None:
        """Why `publish` would not send this, now or later: `broker.packet-size`, `broker.topic`; None when it would."""
        return refusal(self._limits, topic, len(payload), qos, expiry_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stuck_s(self, now: float) -> float:
        """Seconds (of the monotonic clock) since the link's thread last made progress; waits of up to `MAX_BACKOFF_S` between two tries
        count. 0 before the start and once it was told to stop."""
        return max(0.0, now - self._beat) if self._beat and not self._stopping.is_set() else 0.0

    def start(self) -> None:
        self._beat = time.monotonic()
        self._thread.start()

    def abandon(self) -> None:
        """Leave the thread behind wherever it hangs: it tells nothing any more, and ends as soon as it can. Waits for nothing."""
        self._on_message = lambda _topic, _payload: None
        self._on_up = lambda: None
        self._on_down = lambda _reason: None
        self._stopping.set()
        self._wake()

    def stop(self) -> None:
        """Send what waits (at most 2 s), say goodbye and end the thread."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CONNECT_TIMEOUT_S + FLUSH_S + 1)

    def subscribe(self, topic: str, qos: int) -> None:
        """Remembered, and made again after each reconnect."""
        with self._lock:
            self._topics[topic] = qos
            self._outbox.append(_Item("subscribe", topic, qos=qos))
        self._wake()

    def unsubscribe(self, topic: str) -> None:
        with self._lock:
            self._topics.pop(topic, None)
            self._outbox.append(_Item("unsubscribe", topic))
        self._wake()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        """Queue one message. False: dropped, because the outbox is full, or QoS 0 and there is no link, or the broker does not take it
        (see `refuses`)."""
        error = self.refuses(topic, payload, qos=qos, expiry_s=expiry_s)
        if error is not None:
            self._refuse(error)
            return False
        with self._lock:
            full = len(self._outbox) >= OUTBOX_MESSAGES or self._outbox_bytes + len(payload) > OUTBOX_BYTES
            if full or (qos == 0 and not self._up):
                return False
            self._outbox.append(_Item("publish", topic, payload, qos, retain, expiry_s))
            self._outbox_bytes += len(payload)
        self._wake()
        return True

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_w.send(b"\0")

    def _refuse(self, error: TransportError) -> None:
        """Count it, and say it once for each topic."""
        with self._lock:
            self._refused[error.code] += 1
            fresh = (error.code, error.where) not in self._warned and len(self._warned) < MAX_WARNED
            if fresh:
                self._warned.add((error.code, error.where))
        if fresh:
            _log.warning("broker %s:%d: %s", self._settings.host, self._settings.port, error.diagnostics())

    # --- the link's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            started = self._beat = time.monotonic()
            was_up, reason = self._session()
            attempt = 0 if was_up else attempt + 1
            if not self._stopping.is_set():
                self._tell_down(was_up, reason)
                ceiling = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** min(attempt, 10))
                pause = random.uniform(MIN_BACKOFF_S / 2, ceiling)  # noqa: S311
                self._stopping.wait(max(0.0, started + pause - time.monotonic()))
        self._wake_r.close()
        self._wake_w.close()

    def _tell_down(self, was_up: bool, reason: str) -> None:
        if not was_up and reason == self._trouble:
            return
        self._trouble = reason
        _log.warning("broker %s:%d: %s; trying again", self._settings.host, self._settings.port, reason)
        self._on_down(reason)

    def _session(self) -> tuple[bool, str]:
        """Connect and run until the link is lost; whether it was up, and why it ended."""
        self._lost = ""
        self._largest = 0
        try:
            self._client = self._make_client()  # a new one: what was not acknowledged is judged again by what the broker says now
            self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s, clean_start=True)
        except (OSError, ssl.SSLError, ValueError) as error:
            return False, f"cannot connect: {error}"
        except InputError as error:
            return False, f"cannot connect: {error.what}"
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        was_up = False
        while (sock := self._client.socket()) is not None:
            if self._stopping.is_set() and self._flushed(sock):
                break
            self._turn(sock)
            self._beat = time.monotonic()
            was_up = was_up or self._up
            if not was_up and time.monotonic() > deadline:
                self._lost = "the broker does not answer"
                sock.close()
                break
        self._up = False
        return was_up, self._lost or "the connection was lost"

    def _turn(self, sock: Any) -> None:
        """One pass: wait for the socket or for work, read, write, keep alive."""
        patience = self._drain()
        if self._client.socket() is None:
            return
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        poll.register(self._wake_r, select.POLLIN)
        ready = dict(poll.poll(patience * 1000))
        if self._wake_r.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(65536)
        events = ready.get(sock.fileno(), 0)
        if events & ~select.POLLOUT:
            self._client.loop_read()
            while getattr(self._client.socket(), "pending", int)():  # TLS may hold a decrypted packet that poll cannot see
                self._client.loop_read()
        if events & select.POLLOUT and self._client.socket() is not None:
            self._client.loop_write()
        self._client.loop_misc()

    def _drain(self) -> float:
        """Give paho the next items, but never more than its socket and the broker take: what waits, waits bounded, here. Seconds until
        more may go, where only the broker's rate holds it back."""
        while self._up and not self._client.want_write():
            with self._lock:
                item = self._outbox[0] if self._outbox else None
            if item is None or (item.qos and len(self._unacked) >= min(INFLIGHT, self._limits.window)):
                break
            self._rate = self._rate.at_time(time.monotonic())
            if item.op == "publish" and self._rate.wait_s:
                return min(POLL_S, self._rate.wait_s)
            with self._lock:
                self._outbox.popleft()
                self._outbox_bytes -= len(item.payload)
            self._do(item)
        return POLL_S

    def _do(self, item: _Item) -> None:
        if item.op == "subscribe":
            self._client.subscribe(item.topic, min(item.qos, self._limits.max_qos))
        elif item.op == "unsubscribe":
            self._client.unsubscribe(item.topic)
        else:
            self._send(item)

    def _send(self, item: _Item) -> None:
        """Publish as the broker takes it; what it does not take at all ends here."""
        qos = min(item.qos, self._limits.max_qos)
        error = self.refuses(item.topic, item.payload, qos=qos, expiry_s=item.expiry_s)
        if error is not None:
            self._refuse(error)
            return
        if item.retain and not self._limits.retain:
            self._refuse(TransportError("broker.retain", "the broker keeps no retained messages", where=item.topic,
                                        remedy="turn them on in the broker: boards that connect later do not get this one"))
        info = self._client.publish(item.topic, item.payload, qos, item.retain and self._limits.retain, properties=_expiry(item.expiry_s))
        self._largest = max(self._largest, len(item.payload))
        if qos:
            self._unacked[info.mid] = (item, self._largest)
        self._rate = self._rate.spent()

    def _flushed(self, sock: Any) -> bool:
        """After stop(): send what waits for a bounded time, then disconnect. True when done."""
        deadline = time.monotonic() + FLUSH_S
        while self._up and time.monotonic() < deadline and self._client.socket() is not None:
            with self._lock:
                if not self._outbox and not self._client.want_write():
                    break
            self._turn(sock)
        self._client.disconnect()
        while self._client.want_write() and self._client.socket() is not None and time.monotonic() < deadline:
            self._client.loop_write()
        return True

    # --- paho -------------------------------------------------------------------------------------------------

    def _make_client(self) -> paho.Client:
        import paho.mqtt.client as paho

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=paho.MQTTv5)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(INFLIGHT)  # the window is kept here, so paho's own queue stays empty
        client.on_socket_open = self._opened
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_subscribe = self._subscribed
        client.on_publish = self._acknowledged
        if self._will:
            client.will_set(self._will[0], self._will[1], qos=min(1, self._limits.max_qos), retain=self._limits.retain)
        if self._settings.username:
            client.username_pw_set(self._settings.username, _secret(self._settings.password_file))
        if self._settings.ca:
            client.tls_set_context(_tls(self._settings))
        return client

    def _opened(self, _client: Any, _data: Any, sock: Any) -> None:
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _connected(self, client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        names = [name for name in broker_limits.CONNACK_PROPERTIES if hasattr(properties, name)]
        said = broker_limits.announced({name: getattr(properties, name) for name in names})
        if reason.is_failure:
            self._lost = f"the broker refused the connection: {reason}"
            self._limits = broker_limits.without(tightest(self._limits, said), reason.value)  # it may be our will that it does not take
            return
        if said.max_packet_bytes:
            self._learned = BrokerLimits()
        self._limits = tightest(self._settings.limits, tightest(said, self._learned))
        with self._lock:
            again = list(self._topics.items())
            self._requeue()
        for topic, qos in again:
            client.subscribe(topic, min(qos, self._limits.max_qos))
        self._trouble = ""
        self._up = True
        self._on_up()

    def _requeue(self) -> None:
        """What was not acknowledged goes first. Subscriptions were just made from the remembered set, and QoS 0 of an earlier connection
        is worth nothing."""
        kept = [*(item for item, _ in self._unacked.values()), *(item for item in self._outbox if item.op == "publish" and item.qos)]
        self._unacked.clear()
        self._outbox = collections.deque(kept)
        self._outbox_bytes = sum(len(item.payload) for item in kept)

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._up = False
        self._lost = self._lost or f"the connection was lost: {reason}"
        if reason.value in broker_limits.OBJECTIONS and self._largest > self._proven:
            self._learned = BrokerLimits(max_payload_bytes=self._largest - 1)  # a limit that it did not announce: not a second time

    def _acknowledged(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        item, largest = self._unacked.pop(mid, (None, 0))
        if item is None:
            return
        self._proven = max(self._proven, largest)
        if reason.is_failure:
            code = broker_limits.PUBACK_CODES.get(reason.value, "broker.refused")
            self._refuse(TransportError(code, f"the broker did not take a message: {reason}", where=item.topic,
                                        remedy="check the broker's ACL, its quotas and its limit of message sizes"))

    def _subscribed(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                _log.warning("the broker refused a subscription: %s; check its ACL", reason)

    def _received(self, _client: Any, _data: Any, message: Any) -> None:
        try:
            self._on_message(message.topic, message.payload)
        except Exception:  # noqa: BLE001  a fault in one message's handling must not end the link
            _log.exception("handling a message on %s failed", message.topic)


def _expiry(seconds: int) -> Any:
    if not seconds:
        return None
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = seconds
    return properties


def _secret(path: str) -> str | None:
    """The password, read here and never kept in settings or logs."""
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("broker.secret", f"cannot read the broker's password file: {error}", where=path,
                         remedy="make the file readable for this user, with the password on its first line") from None


def _tls(settings: BrokerSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None)
    except (OSError, ssl.SSLError) as error:
        raise InputError("broker.tls", f"cannot use the TLS files of the broker: {error}", where=settings.ca,
                         remedy="check ca, cert and key: PEM files, readable, the key fitting the certificate") from None
    return context
