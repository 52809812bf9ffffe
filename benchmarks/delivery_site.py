"""The place where the delivery benchmarks happen: broker, web server, one measured run, tables. Who runs there: `delivery_parties`.

Each run has fresh processes: broker, sender and receivers. Its time is from "go" until the last receiver is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delivery_parties import CHUNK, mono

LOOPBACK = "127.0.0.1"
GIVE_UP_S = 300.0
HTTP = ("nginx+curl", "casync", "zchunk")
PARTIES = Path(__file__).with_name("delivery_parties.py")


@dataclass(frozen=True)
class Place:
    """Where a process runs (what stands before its command) and the address that it listens on."""

    prefix: tuple[str, ...] = ()
    address: str = LOOPBACK


@dataclass
class Site:
    """One blob and the servers around it. `host` has the files, `boards` the receivers, and the broker is on the boards' side."""

    root: Path
    blob: str
    info: dict[str, Any]
    host: Place = Place()
    boards: Place = Place()
    nginx_port: int = 0
    proxy_port: int = 0
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return int(self.info["size"])


# --- servers ------------------------------------------------------------------------------------------------


@contextmanager
def site_with(size: int, *, host: Place = Place(), boards: Place = Place(), peers: bool = False) -> Iterator[Site]:
    """A random blob of `size` bytes, cut and published, and nginx beside it; with `peers` for casync and zchunk too."""
    with _scratch() as root:
        site = _publish(root, size, host, boards)
        if peers:
            blob = str(root / "site" / site.blob)
            for command in (["casync", "make", f"--store={root}/site/blob.castr", f"{root}/site/blob.caibx", blob],
                            ["zck", "-o", f"{root}/site/blob.zck", blob]):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        site.nginx_port = free_port()
        child = start_nginx(site, host, site.nginx_port, f"root {root}/site;")
        try:
            yield site
        finally:
            stop(child)


@contextmanager
def _scratch() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="jetfleet-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        yield root


def _publish(root: Path, size: int, host: Place, boards: Place) -> Site:
    import msgspec

    from jetfleet_contract.chunks import table_of

    folder = root / "site"
    folder.mkdir()
    data = os.urandom(size)
    tabled = table_of(data[at : at + CHUNK] for at in range(0, size, CHUNK))
    (folder / tabled.blob).write_bytes(data)
    (folder / "blob").symlink_to(tabled.blob)
    for name, page in tabled.pages:
        (folder / name).write_bytes(page)
    return Site(root, tabled.blob, msgspec.to_builtins(tabled.info), host, boards)


def start_nginx(site: Site, place: Place, port: int, server: str, http: str = "") -> subprocess.Popen[bytes]:
    """nginx with one server; its access log holds nothing but the bytes sent, a line for each answer."""
    name = f"nginx-{port}"
    temporary = "".join(f"{kind}_temp_path {site.root}/{name}-{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = site.root / f"{name}.conf"
    config.write_text(
        f"daemon off; user root; pid {site.root}/{name}.pid; error_log {site.root}/{name}.log; worker_processes auto;\nevents {{}}\n"
        f"http {{ log_format sent '$bytes_sent'; access_log {site.root}/{name}.sent sent; sendfile on; tcp_nopush on;\n{temporary}{http}"
        f"server {{ listen {place.address}:{port}; {server} }} }}\n"
    )
    child = subprocess.Popen([*place.prefix, program("nginx"), "-p", str(site.root), "-c", str(config)], stderr=subprocess.DEVNULL)
    wait_for(child, port)
    return child


def start_mosquitto(site: Site, port: int, *, unlimited: bool) -> subprocess.Popen[bytes]:
    """The configuration that jetfleet writes; `unlimited` takes away its limit of message sizes."""
    from jetfleet_host.brokers import write_mosquitto_config

    config = write_mosquitto_config(site.root / "mosquitto.conf", port=port)
    text = config.read_text().replace(f"listener {port} {LOOPBACK}", f"listener {port} {site.boards.address}")
    config.write_text(re.sub(r"message_size_limit .*\n", "", text) if unlimited else text)
    child = subprocess.Popen([*site.boards.prefix, program("mosquitto"), "-c", str(config)], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    wait_for(child, port)
    return child


def stop(child: subprocess.Popen[Any]) -> None:
    child.terminate()
    child.wait()


def wait_for(child: subprocess.Popen[Any], port: int) -> None:
    """Until it listens; asked of the kernel, for it may be in another network namespace."""
    deadline = mono() + 20
    while mono() < deadline and child.poll() is None:
        with suppress(OSError):
            if f":{port:04X} 00000000:0000 0A" in Path(f"/proc/{child.pid}/net/tcp").read_text():
                return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not found:
        raise SystemExit(f"{name} is not installed: apt-get install {name}")
    return found


# --- one run ------------------------------------------------------------------------------------------------


def one_run(site: Site, method: str, receivers: int, options: Sequence[dict[str, Any]] = ()) -> dict[str, float]:
    """Start everything, say go, wait for the last receiver.

    Args:
        options: more of each receiver's job, by its number; one that is `slow_s` is not waited for.

    Returns:
        seconds; sent (bytes the host sent, over the blob's size); host_cpu_s, cpu_s (all receivers), rss_mb (largest receiver),
        broker_rss_mb (its peak), lost (bytes that never came).
    """
    plain = method.removesuffix(" by proxy")
    over_http, proxied = plain in HTTP, plain != method
    port = free_port() if not over_http else site.proxy_port if proxied else site.nginx_port
    address = (site.host if over_http and not proxied else site.boards).address
    sent_before = _served(site)
    common = {"method": method, "host": address, "port": port, "site": str(site.root / "site"), "blob": site.blob, "info": site.info}
    jobs = [{**common, "role": "receive", "name": f"r{n}", "folder": str(site.root / f"r{n}"), **(options[n] if n < len(options) else {})}
            for n in range(receivers)]
    awaited = [job for job in jobs if not job.get("slow_s")]
    with ExitStack() as ending:
        broker = None if over_http else start_mosquitto(site, port, unlimited=method == "one message")
        if broker:
            ending.callback(stop, broker)
        sender = None if over_http else _party(ending, site.host, {**common, "role": "send"})
        children = [_party(ending, site.boards, job) for job in jobs]
        started = _say_go([*children, *([sender] if sender else [])])
        results = [json.loads(child.communicate(timeout=GIVE_UP_S)[0]) for child, job in zip(children, jobs, strict=True) if job in awaited]
        from_host = json.loads(sender.communicate(timeout=30)[0]) if sender else {"sent": _served(site) - sent_before, "cpu_s": 0.0}
        broker_rss = _peak_mb(broker.pid) if broker else 0.0
    _check(site, method, awaited)
    return {
        "seconds": max(result["at"] for result in results) - started,
        "sent": from_host["sent"] / site.size,
        "host_cpu_s": from_host["cpu_s"],
        "cpu_s": sum(result["cpu_s"] for result in results),
        "rss_mb": max(result["rss_mb"] for result in results),
        "broker_rss_mb": broker_rss,
        "lost": sum(result.get("lost", 0.0) for result in results),
    }


def _party(ending: ExitStack, place: Place, job: dict[str, Any]) -> subprocess.Popen[str]:
    """A process of `delivery_parties`, killed at the end if it still runs, however the run ends."""
    party = subprocess.Popen([*place.prefix, sys.executable, str(PARTIES), json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
    ending.callback(party.wait)
    ending.callback(party.kill)
    return party


def _say_go(parties: list[subprocess.Popen[str]]) -> float:
    """Once all are ready; the sender, which is the last, first. When that was."""
    for party in parties:
        if party.stdout is None or party.stdout.readline() != "ready\n":
            raise SystemExit(f"a party did not start: {party.args!r}")
    started = mono()
    for party in reversed(parties):
        if party.stdin is not None:
            party.stdin.write("go\n")
            party.stdin.flush()
    return started


def _served(site: Site) -> float:
    """Bytes that the host's nginx has sent so far."""
    log = site.root / f"nginx-{site.nginx_port}.sent"
    return float(sum(map(int, log.read_text().split()))) if log.exists() else 0.0


def _peak_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


def _check(site: Site, method: str, jobs: list[dict[str, Any]]) -> None:
    """Outside the measured time: every receiver that claims to verify really has the blob."""
    for job in jobs:
        path = Path(job["folder"]) / ("blobs/" + site.blob if method == "jetfleet" else "file")
        if not method.startswith("naive") and hashlib.sha256(path.read_bytes()).hexdigest() != site.blob:
            raise SystemExit(f"{method}: {path} is wrong")
    for folder in site.root.glob("r[0-9]*"):
        shutil.rmtree(folder)


# --- what came of it ----------------------------------------------------------------------------------------


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median, least and most of the seconds; medians, and the worst of what must not vary."""
    seconds = [run["seconds"] for run in runs]
    medians = {name: statistics.median(run[name] for run in runs) for name in ("host_cpu_s", "cpu_s", "rss_mb", "broker_rss_mb")}
    return {"seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "runs": len(runs), **medians,
            "sent": max(run["sent"] for run in runs), "lost": max(run["lost"] for run in runs)}


HEADER = ("| receivers | method | seconds, median (least - most) | host sends, x blob | CPU s, receivers | CPU s, host | MB, a receiver "
          "| MB, broker | lost |\n|---|---|---|---|---|---|---|---|---|")


def row(receivers: int, method: str, found: dict[str, Any]) -> str:
    """One line of the table under `HEADER`."""
    broker = f"{found['broker_rss_mb']:.0f}" if found["broker_rss_mb"] else "-"
    host = f"{found['host_cpu_s']:.2f}" if found["broker_rss_mb"] else "-"
    return (f"| {receivers} | {method} | {found['seconds']:.2f} ({found['least']:.2f} - {found['most']:.2f}) | {found['sent']:.3f} "
            f"| {found['cpu_s']:.2f} | {host} | {found['rss_mb']:.0f} | {broker} | {found['lost'] / 1e6:.1f} MB |")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def keep(name: str, what: dict[str, Any], rows: dict[str, Any]) -> None:
    """The figures, with the machine and the versions, under results/."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    versions = {"mosquitto": [program("mosquitto"), "-h"], "nginx": [program("nginx"), "-v"], "curl": ["curl", "--version"]}
    told = {key: _first_line(command) for key, command in versions.items()}
    machine = {"cpu": cpu.group(1) if cpu else platform.processor(), "cores": os.cpu_count(), "python": platform.python_version(),
               "load_1m": round(os.getloadavg()[0], 1), **told}
    out = Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"what": what, "machine": machine, "rows": rows}, indent=1) + "\n")


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].strip()
