"""The processes of the delivery benchmarks: one sender or one receiver each. Started by `delivery_site`, not by hand.

A party prints ``ready``, waits for a line, does its work and prints its figures as JSON. A receiver is done when the file is on disk, whole
and verified; what each method does for that:

    jetfleet      the agent's own code: each chunk verified and written, file fsynced, read again, hashed, renamed, folder fsynced
    naive         paho, QoS 0, 64 KiB chunks as fast as they go: received and thrown away (it may even lose some: see `lost`)
    naive+store   the same, then written, fsynced and hashed as a whole, as one would do without a chunk table
    one message   paho, QoS 1, the whole blob in one message; written, fsynced and hashed
    nginx+curl    curl to a file, sha256sum, sync FILE
    casync        casync extract from a chunk store on nginx, sha256sum, sync FILE
    zchunk        zckdl from nginx, unzck, sha256sum, sync FILE
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 65536
TOPIC = "naive/chunk"
SILENCE_S = 3.0
AT_GO: list[float] = []


def mono() -> float:
    """CLOCK_MONOTONIC, the same for every process of the machine."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def cpu_s() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def rss_mb() -> float:
    """The largest that this process has been."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_watched(command: list[str], folder: Path) -> float:
    """Run a program to its end; the largest it was, in MB, looked at every 20 ms (what wait4 tells includes Python before the exec)."""
    peak = 0.0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    while child.poll() is None:
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{child.pid}/status").read_text())
            if found and Path(f"/proc/{child.pid}/exe").readlink() != Path("/proc/self/exe").readlink():
                peak = max(peak, int(found.group(1)) / 1024)
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.02)
    if child.returncode:
        raise SystemExit(f"{command[0]} ended with {child.returncode}")
    return peak


def ready_then_go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    AT_GO.append(cpu_s())  # starting Python is not what is measured


# --- receivers ----------------------------------------------------------------------------------------------


def receive_jetfleet(job: dict[str, Any]) -> dict[str, float]:
    """`loss` of chunks is dropped, by `seed`, before the agent sees them; `slow_s` is slept for each in the link's thread."""
    import msgspec

    from jetfleet_agent.supervisor.fetch import Fetcher
    from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
    from jetfleet_agent.supervisor.store import BlobStore
    from jetfleet_contract.chunks import BlobInfo
    from jetfleet_contract.messages import Instant

    draw, loss, slow_s = random.Random(job.get("seed", "")), float(job.get("loss", 0.0)), float(job.get("slow_s", 0.0))
    posted: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    up = threading.Event()
    done: list[str] = []
    failed: list[str] = []

    def heard(topic: str, data: bytes) -> None:
        bulk = topic.split("/")[4] in ("c", "u")
        if bulk and slow_s:
            time.sleep(slow_s)
        if not bulk or not loss or draw.random() >= loss:
            posted.put((topic, data))

    link = MqttLink(BrokerSettings(job["host"], job["port"]), job["name"], heard, up.set, failed.append)
    fetcher = Fetcher(BlobStore(Path(job["folder"])), link, job["name"], lambda: Instant(mono(), "bench", 0.0, wall_trusted=False),
                      done.append, lambda _, error: failed.append(str(error)))
    link.start()
    up.wait(20)
    ready_then_go()
    fetcher.want(job["blob"], msgspec.convert(job["info"], BlobInfo))
    while True:
        wait = fetcher.tick()
        if done or failed:
            break
        with suppress(queue.Empty):
            fetcher.on_message(*posted.get(timeout=max(0.0005, wait)))
    if failed:
        raise SystemExit(f"{job['name']}: {failed}")
    at = mono()
    link.stop()
    return {"at": at}


def receive_messages(job: dict[str, Any]) -> dict[str, float]:
    """Naive chunks, thrown away or stored, and the one large message."""
    import paho.mqtt.client as paho

    posted: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    ready = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=job["name"], protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: posted.put(message.payload)
    client.on_subscribe = lambda *_: ready.set()
    client.connect(job["host"], job["port"])
    client.loop_start()
    client.subscribe(TOPIC, 1)
    ready.wait(20)
    ready_then_go()
    path, size, store = Path(job["folder"]) / "file", int(job["info"]["size"]), job["method"] != "naive"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    got, last = 0, mono()
    while got < size:
        try:
            data = posted.get(timeout=SILENCE_S if got else 60.0)
        except queue.Empty:
            break  # the rest was dropped by the broker: the naive way has no answer to that
        got += len(data) - 4
        last = mono()
        if store:
            os.pwrite(fd, memoryview(data)[4:], int.from_bytes(data[:4], "big") * CHUNK)
    if store:
        os.fsync(fd)
        hashlib.sha256(path.read_bytes()).hexdigest()
        last = mono()
    os.close(fd)
    client.loop_stop()
    return {"at": last, "lost": float(size - got)}


def receive_http(job: dict[str, Any]) -> dict[str, float]:
    """curl, casync or zchunk from a web server."""
    folder, url = Path(job["folder"]), f"http://{job['host']}:{job['port']}"
    target = folder / "file"
    steps = {
        "nginx+curl": [["curl", "-sS", "--fail", "-o", str(target), f"{url}/blob"]],
        "casync": [["casync", "extract", f"--store={url}/blob.castr", f"{url}/blob.caibx", str(target)]],
        "zchunk": [["zckdl", "-q", f"{url}/blob.zck"], ["unzck", "blob.zck"]],
    }[job["method"].removesuffix(" by proxy")]
    ready_then_go()
    peak = max(run_watched(step, folder) for step in steps)
    if job["method"] == "zchunk":
        (folder / "blob").rename(target)
    subprocess.run(["sha256sum", str(target)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", str(target)], check=True)
    return {"at": mono(), "rss_mb": peak}


# --- senders ------------------------------------------------------------------------------------------------


class FolderBlobs:
    """The published blob and its table's pages as files, as `publish` leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def size(self, blob: str) -> int | None:
        path = self.folder / blob
        return path.stat().st_size if path.exists() else None

    def read(self, blob: str, offset: int, length: int) -> bytes:
        with (self.folder / blob).open("rb") as file:
            return os.pread(file.fileno(), length, offset)


def acknowledged(sock: Any) -> float:
    """Bytes that the other end's TCP has taken of this socket: `tcpi_bytes_acked` of Linux's struct tcp_info."""
    return float(struct.unpack_from("Q", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)[0])


def send_jetfleet(job: dict[str, Any]) -> dict[str, float]:
    """What serve does: one control thread, one queue, the Distributor; until standard input ends."""
    from jetfleet_contract import topics
    from jetfleet_host.delivery import Distributor
    from jetfleet_host.mqtt import BrokerSettings, MqttLink

    posted: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    up, stop = threading.Event(), threading.Event()
    link = MqttLink(BrokerSettings(job["host"], job["port"]), "host", lambda topic, data: posted.put((topic, data)), up.set, lambda _: None)
    link.subscribe(topics.ALL_WANTS, 1)
    distributor = Distributor(link, FolderBlobs(Path(job["site"])))
    link.start()
    up.wait(20)
    ready_then_go()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    while not stop.is_set():
        wait = distributor.tick(mono())
        with suppress(queue.Empty):
            topic, data = posted.get(timeout=max(0.0005, min(wait, 0.05)))
            distributor.on_want(topic, data, mono())
    sent = acknowledged(link._client.socket())  # noqa: SLF001  what the kernel counted, not what we believe
    link.stop()
    return {"sent": sent}


def send_messages(job: dict[str, Any]) -> dict[str, float]:
    """Naive chunks with QoS 0, or all in one message with QoS 1."""
    import paho.mqtt.client as paho

    up = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="naive-host", protocol=paho.MQTTv5)
    client.on_connect = lambda *_: up.set()
    client.connect(job["host"], job["port"])
    client.loop_start()
    up.wait(20)
    ready_then_go()
    path = Path(job["site"]) / job["blob"]
    if job["method"] == "one message":
        client.publish(TOPIC, bytes(4) + path.read_bytes(), 1).wait_for_publish()
    else:
        last = None
        with path.open("rb") as file:
            for index, data in enumerate(iter(lambda: file.read(CHUNK), b"")):
                last = client.publish(TOPIC, index.to_bytes(4, "big") + data, 0)
        if last is not None:
            last.wait_for_publish()
    sys.stdin.read()
    sent = acknowledged(client.socket())
    client.disconnect()
    client.loop_stop()
    return {"sent": sent}


ROLES = {
    ("receive", "jetfleet"): receive_jetfleet, ("receive", "naive"): receive_messages, ("receive", "naive+store"): receive_messages,
    ("receive", "one message"): receive_messages, ("send", "jetfleet"): send_jetfleet, ("send", "naive"): send_messages,
    ("send", "naive+store"): send_messages, ("send", "one message"): send_messages,
}


def main() -> None:
    """The job is the only argument, JSON: role, method, name, host, port, folder, site, blob, info."""
    job = json.loads(sys.argv[1])
    if job["role"] == "receive":
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
    result = ROLES.get((job["role"], job["method"]), receive_http)(job)
    print(json.dumps({"rss_mb": rss_mb(), **result, "cpu_s": cpu_s() - AT_GO[0]}), flush=True)


if __name__ == "__main__":
    main()
