"""Every message between host and board, with one bounded decoder.

Messages are frozen msgspec structs; unknown fields are refused in what is signed and ignored nowhere. `decode`
gives a value or a MalformedError, never anything else. Times that travel are wall-clock seconds since 1970 (UTC).
Signatures cover the exact bytes that travel (`Envelope.signed` stays raw), prefixed by the message's type so
that a signed command can never pass for a deployment.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from .app_config import AppConfig as AppConfig  # noqa: PLC0414  part of the messages
from .app_config import Share
from .errors import MalformedError
from .predictions import Detection, trim
from .sketch import Sketch
from .wire import Message as Message  # noqa: PLC0414  everybody takes it from here

MAX_MESSAGE_BYTES = 128 * 1024
MAX_DEPTH = 24
MAX_APPS = 32

T = TypeVar("T")


class Instant(msgspec.Struct, frozen=True):
    """One reading of the clocks: `mono` seconds since boot `boot_id`; `wall` seconds since 1970, trusted or not."""

    mono: float
    boot_id: str
    wall: float
    wall_trusted: bool


# --- what a board should run -------------------------------------------------------------------------------


class Source(Message, frozen=True):
    """One camera, file or folder. `uri` has no credentials; ``local:NAME`` is looked up in the board's own config, ``secret:NAME`` among
    the addresses that were sealed to it.

    `fps` caps live sources and paces files (0: as fast as they come); `loop` starts a file again at its end. `max_age_ms`: a live frame
    that is older when its turn comes is dropped (0: two frame periods).
    """

    name: str
    uri: str
    fps: float = 0.0
    loop: bool = False
    max_age_ms: float = 0.0


class TrialPolicy(Message, frozen=True):
    """When a challenger may take over, what its trial may cost, and when the old model comes back. Ratios are challenger over champion,
    measured on the same board and frames.

    `probe_tolerance` (0..1) overrides the bound that the bundle's own probe set carries; 0 leaves that one in force. `min_iou` and
    `max_score_distance` bound how far both models' answers lie apart where they agree (see `predictions`).

    `mode`: both models beside each other; `stop-start`: the champion stops and the challenger starts, for boards that cannot hold both;
    `auto`: as the predicted memory allows. The challenger's runs take at most `share` of the time, and none for a live frame that
    is older than `max_age_ms` (0: no such bound) or while the board is throttled.

    After the switch the old model is kept for `keep_s` seconds and runs on at most `watch_share` of the time; `min_agreement`, `min_iou`,
    `max_score_distance`, `max_p99_ratio` and `max_p99_ms` hold then too, and the board must not get hotter by over `max_rise_c`
    degrees (0: no such bound) or be throttled when it was not.
    """

    frames: int = 30
    min_agreement: float = 0.7
    max_p99_ratio: float = 2.0
    max_p99_ms: float = 0.0
    probe_tolerance: float = 0.0
    lease_s: float = 600.0
    keep_s: float = 30.0
    mode: Literal["auto", "beside", "stop-start"] = "auto"
    min_iou: Share = 0.0
    max_score_distance: Share = 1.0
    share: Share = 0.25
    max_age_ms: Annotated[float, Meta(ge=0.0, le=1e6)] = 500.0
    watch_share: Share = 0.1
    max_rise_c: Annotated[float, Meta(ge=0.0, le=200.0)] = 15.0


class DeliveryPolicy(Message, frozen=True):
    """How the bytes of an app's bundle may reach the board.

    `on_delta_failure`: what follows when a delta that was chosen cannot be applied (its base is damaged or gone): the update fails with the
    delta's own code, or the full blobs are fetched after that code was reported. `bytes_per_day` bounds what is received for this app in a
    UTC day (0: no bound); `hours` are UTC hours [from, to) in which new chunks are asked for (empty: always; from > to spans midnight).
    """

    on_delta_failure: Literal["fail", "full"] = "fail"
    bytes_per_day: int = 0
    hours: tuple[tuple[int, int], ...] = ()


class AppSpec(Message, frozen=True):
    """One app of a deployment. `bundle` is the SHA-256 of the bundle's manifest, 64 hex digits. `downgrade`: an operator has approved
    that this bundle's release may be older than the one that the board runs."""

    app: str
    bundle: str
    name: str
    version: str
    config: AppConfig = AppConfig()
    sources: tuple[Source, ...] = ()
    input_from: str = ""
    runner: Literal["builtin", "exec"] = "builtin"
    trial: TrialPolicy = TrialPolicy()
    delivery: DeliveryPolicy = DeliveryPolicy()
    downgrade: bool = False


class Deployment(Message, frozen=True, tag_field="type", tag="deployment"):
    """All that one board should run. `seq` only ever grows per device; `expires` bounds replay. `receiver` is the X25519 key (hex) to which
    everything made of pixels is sealed before it leaves the board; empty: nothing may."""

    device: str
    seq: int
    expires: float
    apps: tuple[AppSpec, ...]
    rollout: str = ""
    tags: dict[str, str] = {}
    receiver: str = ""


class Command(Message, frozen=True, tag_field="type", tag="command"):
    """A signed request to one board, answered on ``rsp/{seq}`` only."""

    device: str
    seq: int
    expires: float
    op: Literal["restart", "bench", "snapshot", "logs", "explain", "secret", "engine-build", "engine-certify"]
    args: dict[str, str] = {}


class Response(Message, frozen=True):
    """The answer to command `seq`, device-signed. `code` is empty when it was done; `body` is JSON text of the op's own."""

    device: str
    seq: int
    at: float
    code: str = ""
    detail: str = ""
    body: str = ""


# --- signatures --------------------------------------------------------------------------------------------


class Signature(Message, frozen=True):
    """An Ed25519 signature (RFC 8032) by key `keyid`, in hex."""

    keyid: str
    sig: str


class Envelope(Message, frozen=True):
    """A signed message. `signed` is kept as the exact JSON that travelled."""

    type: str
    signed: msgspec.Raw
    signatures: tuple[Signature, ...]


def signed_bytes(kind: str, body: bytes) -> bytes:
    """What a signature covers: type and length first (as DSSE's pre-authentication encoding does)."""
    return b"jetfleet/1 %d %s %d %s" % (len(kind), kind.encode(), len(body), body)


# --- what a board says -------------------------------------------------------------------------------------


class BackendInfo(Message, frozen=True):
    """A runtime on a board: its version when usable, else the reason why not. `precisions` is what it can execute in."""

    name: str
    version: str = ""
    missing: str = ""
    precisions: tuple[str, ...] = ()
    build: str = ""


class GpuInfo(Message, frozen=True):
    """The first GPU, as its driver tells. `sm` is the compute capability times ten, `sm_count` the multiprocessors; `integrated`: it reads
    the host's memory (Jetson); `driver` is the CUDA version that the driver serves, ``12.6``. `dla_cores` are those that TensorRT sees and
    the board file allows under this release, `dla_precisions` what runs on them."""

    name: str
    sm: int
    sm_count: int = 0
    integrated: bool = False
    driver: str = ""
    dla_cores: int = 0
    dla_precisions: tuple[str, ...] = ()


class Capability(Message, frozen=True):
    """What a board can do. `simulated` names the board file that was put over the real machine, for laptops. `gpu` is None where no runtime
    of a GPU found a driver; `module` is a Jetson module's part number, ``p3767-0005``, `system` its L4T release; empty elsewhere."""

    board: str
    device_class: str
    arch: str
    cpu: str = ""
    isa: tuple[str, ...] = ()
    cores: int = 1
    memory_mb: int = 0
    backends: tuple[BackendInfo, ...] = ()
    simulated: bool = False
    gpu: GpuInfo | None = None
    module: str = ""
    system: str = ""


class AppState(Message, frozen=True):
    """What one app runs now."""

    app: str
    bundle: str = ""
    name: str = ""
    version: str = ""
    candidate: str = ""
    phase: str = ""
    reason: str = ""


class Birth(Message, frozen=True):
    """Retained inventory, device-signed. `key` is the board's Ed25519 public key in hex; `session` grows with every start.

    `instance` is drawn anew at every start: two of them under one session mean two boards with one identity. `sealing` is the board's
    X25519 public key in hex, to which secrets are sealed; empty on boards that take none.
    """

    device: str
    session: int
    agent_version: str
    contract: int
    key: str
    capability: Capability
    apps: tuple[AppState, ...] = ()
    seq: int = 0
    instance: str = ""
    sealing: str = ""


class DeviceState(Message, frozen=True):
    """Retained online mark, and its own Will. A Will of an older session than the last birth is ignored."""

    device: str
    online: bool
    session: int


class Report(Message, frozen=True):
    """Progress or outcome of one app's update, device-signed, repeated until acknowledged.

    `phase` is the slot machine's; `outcome` is empty while under way. `code` is an error's stable code.
    `metrics`: agreement, mean_iou, score_distance, probe_agreement, champion_p99_ms, challenger_p99_ms, shadow_share, skipped_REASON,
    memory_predicted_mb, memory_mb, keep_p99_ms, keep_agreement, frames_lost, gap_ms, bytes, bytes_delta, bytes_saved ...
    """

    device: str
    id: int
    seq: int
    app: str
    at: float
    phase: str
    bundle: str = ""
    version: str = ""
    from_version: str = ""
    outcome: Literal["", "committed", "refused", "rolled_back", "failed"] = ""
    code: str = ""
    detail: str = ""
    candidate: str = ""
    metrics: dict[str, float] = {}
    rollout: str = ""


class Ack(Message, frozen=True):
    """The host has stored report `id` of this device."""

    id: int


class Series(Message, frozen=True):
    """One (app, bundle, variant, source)'s part of a telemetry window.

    `stages` are sketches in milliseconds: wait, capture, pre, infer, decode, sink, total (capture end to result),
    age (frame's own time to result). `seen` = `done` + sum of `dropped` + what is still under way. `values` are sketches of what is no
    time: score, luma, blur, ``kpi.NAME``; `labels` counts answers by label.
    """

    app: str
    bundle: str
    version: str
    candidate: str
    source: str
    seen: int
    done: int
    dropped: dict[str, int] = {}
    stages: dict[str, Sketch] = {}
    values: dict[str, Sketch] = {}
    labels: dict[str, int] = {}


MAX_GAUGES = 256
"""Of one window: the board's own come first, then its apps' (some 40 each). They fill 20 kB of a message at most."""


class Alarm(Message, frozen=True):
    """Something that a person should know of and that still holds. `code` is stable: drift, age.high ...; `source` may be empty."""

    app: str
    source: str
    code: str
    detail: str = ""


class Telemetry(Message, frozen=True):
    """One numbered window, device-signed. `window` grows by one per session, so that gaps and duplicates show; `alarms` stand at its
    end."""

    device: str
    session: int
    window: int
    started: float
    duration_s: float
    series: tuple[Series, ...] = ()
    gauges: dict[str, float] = {}
    alarms: tuple[Alarm, ...] = ()


class Result(Message, frozen=True):
    """What one app saw on one frame. `frame` counts frames of the source from 0 over the pipeline's life. `amended`: the same frame again,
    with what the host's model said of its uncertain parts."""

    app: str
    source: str
    frame: int
    at: float
    age_ms: float
    version: str
    candidate: str
    detections: tuple[Detection, ...] = ()
    position: int = -1  # index inside the file or folder; -1 for live sources
    kpis: dict[str, float] = {}
    amended: bool = False

    def to_tree(self) -> Any:
        tree = super().to_tree()
        trim(tree.get("detections", ()))
        return tree


# --- codec -------------------------------------------------------------------------------------------------

_ENCODER = msgspec.json.Encoder(order="sorted")


def encode(message: msgspec.Struct) -> bytes:
    """JSON with sorted keys: the same message is always the same bytes."""
    if isinstance(message, Envelope):  # its raw part must travel as it is
        return _ENCODER.encode(message)
    return _ENCODER.encode(message.to_tree() if isinstance(message, Message) else msgspec.to_builtins(message, str_keys=True))


def decode(data: bytes, kind: type[T], *, limit: int = MAX_MESSAGE_BYTES) -> T:
    """Decode one message.

    Args:
        limit: largest accepted size in bytes.

    Raises:
        MalformedError: `message.large`, `message.deep` or `message.bad`.
    """
    if len(data) > limit:
        raise MalformedError("message.large", f"{kind.__name__} of {len(data)} bytes is over the limit of {limit}")
    if _depth_over(data, MAX_DEPTH):
        raise MalformedError("message.deep", f"{kind.__name__} is nested deeper than {MAX_DEPTH}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedError("message.bad", f"not a valid {kind.__name__}: {error}") from None


def _depth_over(data: bytes, limit: int) -> bool:
    """True when brackets nest deeper than `limit`. Counts brackets inside strings too: stricter, never laxer."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    depth = 0
    for byte in data:
        if byte in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif byte in b"]}":
            depth -= 1
    return False
