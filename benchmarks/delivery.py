"""One blob to many receivers through mosquitto on loopback: jetfleet against naive chunks over MQTT and against nginx with curl.

    python benchmarks/delivery.py [--quick] [--mb 50] [--receivers 8] [--runs 5] [--json benchmarks/results/delivery.json]

Every receiver is a process of its own; every run starts fresh ones; methods are interleaved. A run's time is from "go" until the last
receiver is done. What "done" means:

    jetfleet      the agent's own code: each chunk verified and written, file fsynced, read again, hashed, renamed, folder fsynced
    naive         paho, QoS 0, 64 KiB chunks as fast as they go: received and thrown away (it may even lose some: see `lost`)
    naive+store   the same, then written, fsynced and hashed as a whole, as one would do without a chunk table
    nginx+curl    curl to a file, sha256sum, sync FILE
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import queue
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK = 65536
HOST = "127.0.0.1"
TOPIC = "naive/chunk"
GIVE_UP_S = 300.0
AT_GO: list[float] = []
METHODS = ("jetfleet", "naive", "naive+store", "nginx+curl")


def mono() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


# --- receivers (each in a process of its own) ---------------------------------------------------------------


def receive_jetfleet(name: str, port: int, folder: Path, blob: str, info_json: str) -> dict[str, float]:
    import msgspec

    from jetfleet_agent.supervisor.fetch import Fetcher
    from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
    from jetfleet_agent.supervisor.store import BlobStore
    from jetfleet_contract.chunks import BlobInfo
    from jetfleet_contract.messages import Instant

    posted: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    up = threading.Event()
    done: list[str] = []
    failed: list[str] = []
    link = MqttLink(BrokerSettings(HOST, port), name, lambda topic, data: posted.put((topic, data)), up.set, failed.append)
    fetcher = Fetcher(BlobStore(folder), link, name, lambda: Instant(mono(), "bench", 0.0, wall_trusted=False), done.append,
                      lambda _, error: failed.append(str(error)))
    link.start()
    up.wait(20)
    ready_then_go()
    fetcher.want(blob, msgspec.json.decode(info_json, type=BlobInfo))
    while True:
        wait = fetcher.tick()
        if done or failed:
            break
        try:
            topic, data = posted.get(timeout=max(0.0005, wait))
            fetcher.on_message(topic, data)
        except queue.Empty:
            pass
    if failed:
        raise SystemExit(f"{name}: {failed}")
    at = mono()
    link.stop()
    return {"at": at}


def receive_naive(name: str, port: int, folder: Path, size: int, store: bool) -> dict[str, float]:
    import paho.mqtt.client as paho

    posted: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    ready = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: posted.put(message.payload)
    client.on_subscribe = lambda *_: ready.set()
    client.connect(HOST, port)
    client.loop_start()
    client.subscribe(TOPIC, 0)
    ready.wait(20)
    ready_then_go()
    fd = os.open(folder / "naive.bin", os.O_CREAT | os.O_RDWR)
    got, last = 0, mono()
    while got < size:
        try:
            data = posted.get(timeout=2.0)
        except queue.Empty:
            break  # the rest was dropped by the broker: the naive way has no answer to that
        got += len(data) - 4
        last = mono()
        if store:
            os.pwrite(fd, memoryview(data)[4:], int.from_bytes(data[:4], "big") * CHUNK)
    if store:
        os.fsync(fd)
        hashlib.sha256((folder / "naive.bin").read_bytes()).hexdigest()
        last = mono()
    os.close(fd)
    client.loop_stop()
    return {"at": last, "lost": float(size - got)}


def receive_curl(port: int, folder: Path) -> dict[str, float]:
    ready_then_go()
    target = folder / "curl.bin"
    subprocess.run(["curl", "-sS", "--fail", "-o", str(target), f"http://{HOST}:{port}/blob"], check=True)
    subprocess.run(["sha256sum", str(target)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", str(target)], check=True)
    return {"at": mono()}


def cpu_s() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def ready_then_go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    AT_GO.append(cpu_s())  # starting Python is not what is measured


def receiver_main(args: list[str]) -> None:
    method, name, port, folder, blob, info_json = args
    Path(folder).mkdir(parents=True, exist_ok=True)
    size = int(json.loads(info_json)["size"])
    if method == "jetfleet":
        result = receive_jetfleet(name, int(port), Path(folder), blob, info_json)
    elif method == "nginx+curl":
        result = receive_curl(int(port), Path(folder))
    else:
        result = receive_naive(name, int(port), Path(folder), size, method == "naive+store")
    result["cpu_s"] = cpu_s() - AT_GO[0]
    print(json.dumps(result), flush=True)


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


def send_jetfleet(port: int, blobs: FolderBlobs, stop: threading.Event, ready: threading.Event, out: dict[str, float]) -> None:
    """What serve does: one control thread, one queue, the Distributor."""
    from jetfleet_contract import topics
    from jetfleet_host.delivery import Distributor
    from jetfleet_host.mqtt import BrokerSettings, MqttLink

    posted: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    link = MqttLink(BrokerSettings(HOST, port), "host", lambda topic, data: posted.put((topic, data)), ready.set, lambda _: None)
    link.subscribe(topics.ALL_WANTS, 1)
    distributor = Distributor(link, blobs)
    link.start()
    while not stop.is_set():
        wait = distributor.tick(mono())
        try:
            topic, data = posted.get(timeout=max(0.0005, min(wait, 0.05)))
            distributor.on_want(topic, data, mono())
        except queue.Empty:
            pass
    link.stop()
    out["published"] = float(distributor.stats.published_bytes)


def send_naive(port: int, path: Path, go: threading.Event, ready: threading.Event, out: dict[str, float]) -> None:
    import paho.mqtt.client as paho

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="naive-host", protocol=paho.MQTTv5)
    client.on_connect = lambda *_: ready.set()
    client.connect(HOST, port)
    client.loop_start()
    go.wait()
    sent, last = 0, None
    with path.open("rb") as file:
        for index, data in enumerate(iter(lambda: file.read(CHUNK), b"")):
            last = client.publish(TOPIC, index.to_bytes(4, "big") + data, 0)
            sent += len(data) + 4
    if last is not None:
        last.wait_for_publish()
    client.disconnect()
    client.loop_stop()
    out["published"] = float(sent)


# --- one run ------------------------------------------------------------------------------------------------


def one_run(method: str, ports: dict[str, int], root: Path, blob: str, info_json: str, receivers: int) -> dict[str, float]:
    """Start receivers and a sender, say go, wait for the last; seconds, bytes published, CPU seconds, bytes lost."""
    folders = [root / f"r{n}" for n in range(receivers)]
    port = ports["nginx" if method == "nginx+curl" else "mqtt"]
    children = [
        subprocess.Popen([sys.executable, __file__, "--receiver", method, f"r{n}", str(port), str(folder), blob, info_json],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n, folder in enumerate(folders)
    ]
    stop, go, ready, out = threading.Event(), threading.Event(), threading.Event(), dict[str, float]()
    sender: threading.Thread | None = None
    if method == "jetfleet":
        sender = threading.Thread(target=send_jetfleet, args=(port, FolderBlobs(root / "site"), stop, ready, out))
    elif method != "nginx+curl":
        sender = threading.Thread(target=send_naive, args=(port, root / "site" / blob, go, ready, out))
    if sender is not None:
        sender.start()
        ready.wait(20)
    for child in children:
        if child.stdout is None or child.stdout.readline() != "ready\n":
            raise SystemExit(f"{method}: a receiver did not start")
    started = mono()
    for child in children:
        if child.stdin is not None:
            child.stdin.write("go\n")
            child.stdin.flush()
    go.set()
    results = [json.loads(child.communicate(timeout=GIVE_UP_S)[0]) for child in children]
    stop.set()
    if sender is not None:
        sender.join()
    check_files(method, folders, blob)
    for folder in folders:
        shutil.rmtree(folder)
    size = float(json.loads(info_json)["size"])
    return {
        "seconds": max(result["at"] for result in results) - started,
        "published_ratio": out.get("published", size * receivers) / size,
        "receivers_cpu_s": sum(result["cpu_s"] for result in results),
        "lost_bytes": sum(result.get("lost", 0.0) for result in results),
    }


def check_files(method: str, folders: list[Path], blob: str) -> None:
    """Outside the measured time: every receiver that claims to verify really has the blob."""
    for folder in folders:
        path = {"jetfleet": folder / "blobs" / blob, "nginx+curl": folder / "curl.bin"}.get(method)
        if path is not None and hashlib.sha256(path.read_bytes()).hexdigest() != blob:
            raise SystemExit(f"{method}: {path} is wrong")


# --- servers ------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = mono() + 20
    while mono() < deadline:
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"nothing listens on port {port}")


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise SystemExit(f"{name} is not installed: apt-get install {name}")
    return found


def servers(root: Path) -> Iterator[dict[str, int]]:
    from jetfleet_host.brokers import write_mosquitto_config

    ports = {"mqtt": free_port(), "nginx": free_port()}
    mosquitto = write_mosquitto_config(root / "mosquitto.conf", port=ports["mqtt"])
    nginx = root / "nginx.conf"
    nginx.write_text(
        f"daemon off; pid {root}/nginx.pid; error_log {root}/nginx.log; worker_processes auto;\n"
        "events {}\n"
        "http { access_log off; sendfile on;\n"
        + "".join(f"{kind}_temp_path {root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        +        f"server {{ listen {HOST}:{ports['nginx']}; root {root}/site; }} }}\n"
    )
    children = [
        subprocess.Popen([program("mosquitto"), "-c", str(mosquitto)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        subprocess.Popen([program("nginx"), "-p", str(root), "-c", str(nginx)], stderr=subprocess.DEVNULL),
    ]
    try:
        for port in ports.values():
            wait_for(port)
        yield ports
    finally:
        for child in children:
            child.terminate()
            child.wait()


# --- report -------------------------------------------------------------------------------------------------


def prepare(root: Path, size: int) -> tuple[str, str]:
    """Make the blob and its table under ``site``; its id and its BlobInfo as JSON."""
    import msgspec

    from jetfleet_contract.chunks import table_of

    site = root / "site"
    site.mkdir()
    root.chmod(0o755)
    data = os.urandom(size)
    tabled = table_of(data[at : at + CHUNK] for at in range(0, size, CHUNK))
    (site / tabled.blob).write_bytes(data)
    (site / "blob").symlink_to(tabled.blob)
    for name, page in tabled.pages:
        (site / name).write_bytes(page)
    info = msgspec.to_builtins(tabled.info)
    return tabled.blob, json.dumps({"size": size, "chunk_size": CHUNK, **info})


def summary(runs: list[dict[str, float]]) -> dict[str, float | list[float]]:
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds_median": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "published_ratio": max(run["published_ratio"] for run in runs),
        "receivers_cpu_s": statistics.median(run["receivers_cpu_s"] for run in runs),
        "lost_bytes": max(run["lost_bytes"] for run in runs),
        "seconds": seconds,
    }


def machine() -> dict[str, str]:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    mosquitto = subprocess.run([program("mosquitto"), "-h"], capture_output=True, text=True, check=False).stdout.splitlines()[:1]
    nginx = subprocess.run([program("nginx"), "-v"], capture_output=True, text=True, check=False).stderr.strip()
    return {
        "cpu": cpu.group(1) if cpu else platform.processor(), "cores": str(os.cpu_count()), "python": platform.python_version(),
        "mosquitto": " ".join(mosquitto), "nginx": nginx, "load_1m": f"{os.getloadavg()[0]:.1f}",
    }


def table(report: dict[str, dict[str, float]], base: str) -> str:
    lines = [
        "| method | seconds, median (min..max) | x naive | host publishes, x blob | CPU s, receivers | lost |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {method} | {row['seconds_median']:.2f} ({row['seconds_min']:.2f}..{row['seconds_max']:.2f}) "
        f"| {row['seconds_median'] / report[base]['seconds_median']:.2f} | {row['published_ratio']:.3f} "
        f"| {row['receivers_cpu_s']:.1f} | {row['lost_bytes'] / 1e6:.1f} MB |"
        for method, row in report.items()
    ]
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--receiver"]:
        receiver_main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 MB, 3 receivers, 2 runs")
    parser.add_argument("--mb", type=float, default=50.0)
    parser.add_argument("--receivers", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "delivery.json")
    args = parser.parse_args()
    if args.quick:
        args.mb, args.receivers, args.runs = 10.0, 3, 2
    run_all(args.methods.split(","), int(args.mb * 1_000_000), args.receivers, args.runs, args.json)


def run_all(methods: list[str], size: int, receivers: int, runs: int, out: Path) -> None:
    collected: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as folder:
        root = Path(folder)
        blob, info_json = prepare(root, size)
        for ports in servers(root):
            for turn in range(runs):
                for method in methods:
                    run = one_run(method, ports, root, blob, info_json, receivers)
                    collected[method].append(run)
                    say(f"run {turn + 1}/{runs} {method}: {run['seconds']:.2f} s, published {run['published_ratio']:.3f}")
    report = {method: summary(found) for method, found in collected.items()}
    result = {"what": {"bytes": size, "receivers": receivers, "runs": runs}, "machine": machine(), "methods": report}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    base = "naive" if "naive" in report else methods[0]
    print(f"{size / 1e6:.0f} MB to {receivers} receivers, {runs} interleaved runs, {result['machine']}\n")
    print(table(report, base))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
