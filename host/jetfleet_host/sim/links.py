"""MQTT for a thousand virtual devices in one thread: one real connection a device, paho driven by asyncio.

paho is driven through its public calls for foreign event loops. Measured with 500 clients on mosquitto, one core for them: connect
0.32 ms of CPU a client, a received 16 KiB chunk 41 us, 64 KiB 74 us. gmqtt took 28 and 89 us and five times the memory; a codec of our
own 11 and 20 us, but would be one more client that nobody else tests. A device takes some sixty messages for an update.

Only connecting may block, so it runs in a small pool of threads. Everything else, callbacks included, is the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import paho.mqtt.client as paho

KEEPALIVE_S = 60
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
CONNECT_TIMEOUT_S = 30.0
MISC_S = 5.0
INFLIGHT = 20


class Address(msgspec.Struct, frozen=True):
    """Where the broker is."""

    host: str
    port: int


class Connector:
    """What all links share: the threads that connect, and the ones that are up, for their keep-alives."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.links: set[DeviceLink] = set()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="connect")
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(MISC_S)
            for link in list(self.links):
                link.keep_alive()

    async def connect(self, client: paho.Client) -> None:
        """Connect and send CONNECT. Raises OSError; a client that nobody waits for any more is closed again."""
        work = self._pool.submit(client.connect, self.address.host, self.address.port, KEEPALIVE_S, clean_start=True)
        try:
            await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda _done: _close(client))
            raise

    def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)


class DeviceLink:
    """One client that never gives up, until it is `cut` or `close`d; then it is used up.

    Args:
        pause_s: how long it takes its owner to read one message; 0: as fast as they come.
    """

    def __init__(self, connector: Connector, client_id: str, on_message: Callable[[str, bytes], None], on_up: Callable[[], None],
                 on_down: Callable[[], None], draws: random.Random, *, will: tuple[str, bytes] | None = None, pause_s: float = 0.0) -> None:
        self._connector = connector
        self.address = connector.address
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._draws = draws
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()
        self._topics: dict[str, int] = {}
        self._client = self._make_client(client_id, will)
        self._socket: Any = None
        self._lost = asyncio.Event()
        self._asleep = False
        self._unacknowledged: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def start(self) -> None:
        self._connector.links.add(self)
        self._task = self._loop.create_task(self._run())

    def subscribe(self, topic: str, qos: int) -> None:
        """Remembered, and made again after each reconnect."""
        self._topics[topic] = qos
        if self.connected:
            self._client.subscribe(topic, qos)
            self._write_soon()

    def unsubscribe(self, topic: str) -> None:
        if self._topics.pop(topic, None) is not None and self.connected:
            self._client.unsubscribe(topic)
            self._write_soon()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> None:
        """QoS 1 waits for the link and is sent until the broker has acknowledged it; QoS 0 is dropped without a link."""
        if qos or self.connected:
            sent = self._client.publish(topic, payload, qos, retain, properties=_expiry(expiry_s))
            if qos:
                self._unacknowledged.add(sent.mid)
            self._write_soon()

    @property
    def idle(self) -> bool:
        """Up, and all that was published at QoS 1 is acknowledged by the broker."""
        return self.connected and not self._unacknowledged

    def hurry(self) -> None:
        """Read at full speed from now on."""
        self._pause_s = 0.0
        self.sleep(False)

    def sleep(self, asleep: bool) -> None:
        """A device in deep sleep reads nothing; its connection stays."""
        self._asleep = asleep
        if self._socket is None:
            return
        if asleep:
            self._loop.remove_reader(self._socket)
        else:
            self._loop.add_reader(self._socket, self._readable)

    def cut(self) -> None:
        """As when the process is killed: the socket closes, no goodbye, so that the broker publishes the will."""
        self._connector.links.discard(self)
        if self._task is not None:
            self._task.cancel()
        self._drop_socket()
        _close(self._client)
        self.connected = False

    async def close(self) -> None:
        """Say goodbye; nothing is sent any more."""
        if self.connected:
            self._client.disconnect()
            with contextlib.suppress(OSError, ValueError):
                self._client.loop_write()
        self.cut()

    def keep_alive(self) -> None:
        if self.connected and not self._asleep:
            self._client.loop_misc()
            self._write_soon()

    # --- the connection's life --------------------------------------------------------------------------------

    async def _run(self) -> None:
        attempt = 0
        while True:
            self._lost.clear()
            try:
                await self._connector.connect(self._client)
            except (OSError, ValueError):
                attempt += 1
                await asyncio.sleep(self._draws.uniform(MIN_BACKOFF_S, min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** min(attempt + 1, 10))))
                continue
            self._adopt()
            timeout = self._loop.call_later(CONNECT_TIMEOUT_S, self._late)
            await self._lost.wait()
            timeout.cancel()
            was_up, self.connected = self.connected, False
            self._drop_socket()
            _close(self._client)
            if was_up:
                self._on_down()
            attempt = 0 if was_up else attempt + 1
            await asyncio.sleep(self._draws.uniform(MIN_BACKOFF_S, min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** min(attempt + 1, 10))))

    def _late(self) -> None:
        if not self.connected:
            self._lost.set()

    def _adopt(self) -> None:
        self._socket = self._client.socket()
        if self._socket is None:
            self._lost.set()
            return
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add_reader(self._socket, self._readable)
        self._write_soon()

    def _drop_socket(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    def _readable(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # its owner may close it while it hands over a message
            self._client.loop_read()
        if self._socket is None or self._client.socket() is not self._socket:
            self._lost.set()
            return
        self._write_soon()
        if self._pause_s and self.connected:
            self._loop.remove_reader(self._socket)
            self._loop.call_later(self._pause_s, self._read_again, self._socket)

    def _read_again(self, sock: Any) -> None:
        if sock is self._socket and not self._asleep:
            self._loop.add_reader(sock, self._readable)

    def _write_soon(self) -> None:
        if self._socket is not None and self._client.want_write():
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        if self._socket is not None and self._client.want_write():
            self._client.loop_write()
        if self._socket is None or self._client.socket() is not self._socket:
            self._lost.set()
        elif not self._client.want_write():
            self._loop.remove_writer(self._socket)

    # --- paho -------------------------------------------------------------------------------------------------

    def _make_client(self, client_id: str, will: tuple[str, bytes] | None) -> paho.Client:
        import paho.mqtt.client as paho

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(INFLIGHT)
        client.on_connect = self._connected
        client.on_message = self._received
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_socket_close = self._closing
        if will:
            client.will_set(will[0], will[1], qos=1, retain=True)
        return client

    def _connected(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._lost.set()
            return
        for topic, qos in self._topics.items():
            client.subscribe(topic, qos)
        self.connected = True
        self._on_up()

    def _disconnected(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        self._lost.set()

    def _closing(self, _client: Any, _data: Any, sock: Any) -> None:
        if sock is self._socket:
            self._drop_socket()

    def _published(self, _client: Any, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._unacknowledged.discard(mid)

    def _received(self, _client: Any, _data: Any, message: Any) -> None:
        self._on_message(message.topic, message.payload)


def _close(client: paho.Client) -> None:
    """Close the socket without a goodbye; paho notices at its next call."""
    sock = client.socket()
    if sock is not None:
        with contextlib.suppress(OSError, AttributeError):
            sock.close()


def _expiry(seconds: int) -> Any:
    if not seconds:
        return None
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = seconds
    return properties
