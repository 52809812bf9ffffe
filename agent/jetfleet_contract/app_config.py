"""An app's settings: signed with the deployment, versioned by themselves, changed without a model trial.

Every part that is None is off. Nothing in here may name a path or a program of the board: names are looked up among what the board's own
config or its installed packages offer, because settings come over the network.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from msgspec import Meta

from .wire import Message

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Name = Annotated[str, Meta(min_length=1, max_length=63)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e7)]


class Tile(Message, frozen=True):
    """Large frames are cut into squares of `size` pixels that share `overlap` (of their side) with their neighbours; answers are merged."""

    size: Annotated[int, Meta(ge=32, le=8192)]
    overlap: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.2


class Batching(Message, frozen=True):
    """Up to `most` frames of different cameras in one run of the model; the first waits at most `wait_ms` for the others."""

    most: Annotated[int, Meta(ge=1, le=64)] = 1
    wait_ms: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0


class Tracking(Message, frozen=True):
    """Identities over time (needs ``jetfleet-agent[tracking]`` on the board). `keep_s`: how long a track outlives its last detection;
    `least_score`: what may begin one; `min_iou`: how well a detection must fit to where its track is expected."""

    method: Literal["norfair"] = "norfair"
    least_score: Share = 0.25
    keep_s: Seconds = 1.0
    min_iou: Share = 0.2


class JsonlSink(Message, frozen=True, tag="jsonl"):
    """Results as JSON lines in the board's results folder, under this name; a file of `max_mb` is put away, the oldest of `keep` goes. The
    board's own bound on an app's files stands above both."""

    name: Name = "results"
    max_mb: Annotated[int, Meta(ge=1, le=100_000)] = 64
    keep: Annotated[int, Meta(ge=1, le=100)] = 4


class WebhookSink(Message, frozen=True, tag="webhook"):
    """Results as JSON arrays to an HTTP(S) address (``secret:NAME`` where it holds a password or a token), at most `most` a request, the
    first of them at most `wait_s` old."""

    url: Annotated[str, Meta(min_length=1, max_length=2000)]
    most: Annotated[int, Meta(ge=1, le=1000)] = 50
    wait_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 1.0


class SocketSink(Message, frozen=True, tag="socket"):
    """Results to every local program that connects to the app's result socket."""


class PreviewSink(Message, frozen=True, tag="preview"):
    """Annotated MJPEG over HTTP. On the loopback without `token`; with one (``secret:NAME``) on the address that the board's own config
    gives to previews, which off the loopback also wants the privacy purpose ``preview``. `port` 0: any free one, told in the log."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    fps: Annotated[float, Meta(gt=0.0, le=60.0)] = 5.0
    width: Annotated[int, Meta(ge=64, le=4096)] = 960
    token: Annotated[str, Meta(max_length=80)] = ""


SinkSpec = Union[JsonlSink, WebhookSink, SocketSink, PreviewSink]


class MqttResults(Message, frozen=True):
    """How results go out over MQTT, where `publish_results` lets them. `per_second` (0: all) is the most that one source may send;
    `bytes_per_hour` (0: no bound) keeps a metered link: what comes when it is used up is dropped and counted."""

    qos: Literal[0, 1] = 0
    per_second: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    bytes_per_hour: Annotated[int, Meta(ge=0)] = 0


class Privacy(Message, frozen=True):
    """What may leave the board, and for what. Without this nothing made of pixels does.

    `cascade`: the host's model is asked about uncertain crops, and the host forgets them. `harvest`: the host keeps such crops for the next
    training. `bytes_per_day` bounds what leaves for both together in a UTC day; 0: nothing.
    """

    purposes: tuple[Literal["cascade", "harvest", "snapshot", "preview"], ...] = ()
    bytes_per_day: Annotated[int, Meta(ge=0)] = 100_000_000


class Cascade(Message, frozen=True):
    """Answers whose score lies in [`above`, `below`) go as crops to the host's model; what it says within `deadline_s` is merged.

    `labels` has bands of its own for some labels, (above, below). `repeat_s`: what stands still and looks the same is not asked about again
    for so long. `most`: crops a frame. `margin`: how much of its own size a crop shows on each side of the thing. `model`: a published
    ``NAME:VERSION`` that answers instead of the bundle's own full precision.
    """

    below: Share = 0.5
    above: Share = 0.1
    labels: dict[str, tuple[Share, Share]] = {}
    deadline_s: Seconds = 2.0
    bytes_per_hour: Annotated[int, Meta(ge=0)] = 10_000_000
    repeat_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 60.0
    most: Annotated[int, Meta(ge=1, le=16)] = 3
    margin: Annotated[float, Meta(ge=0.0, le=4.0)] = 0.5
    model: Annotated[str, Meta(max_length=128)] = ""


class Drift(Message, frozen=True):
    """A window's histograms against a reference: over `threshold` (population stability index) for `windows` windows alarms.

    `reference`: what the builder's images were like (`bundle`), or what this camera showed in its first `windows` windows since the process
    began (`camera`: where a scene never changes, but is unlike the builder's images).
    """

    reference: Literal["bundle", "camera"] = "bundle"
    threshold: Annotated[float, Meta(gt=0.0, le=10.0)] = 0.2
    windows: Annotated[int, Meta(ge=1, le=1000)] = 3
    window_s: Annotated[float, Meta(ge=5.0, le=86400.0)] = 60.0


class Governor(Message, frozen=True):
    """How an app gives way to heat: its sources are read less often, never below `least_fps`. `margin_c`: degrees under the board's own
    throttling point at which it begins. `importance`: of several apps the least important gives way first. `whole`: a tiled app's last
    resort is one run over the whole frame instead of one a tile, which misses what is small."""

    least_fps: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    margin_c: Annotated[float, Meta(ge=0.0, le=60.0)] = 8.0
    importance: Annotated[int, Meta(ge=0, le=9)] = 5
    whole: bool = True


class AppConfig(Message, frozen=True):
    """`options` are the task's own. `kpis` names an installed hook (entry points group ``jetfleet.kpis``) that adds numbers to results;
    `kpi_options` are that hook's."""

    version: int = 1
    options: dict[str, float | str | bool] = {}
    publish_results: bool = True
    results: MqttResults = MqttResults()
    tile: Tile | None = None
    batching: Batching = Batching()
    tracking: Tracking | None = None
    sinks: tuple[SinkSpec, ...] = ()
    privacy: Privacy = Privacy()
    cascade: Cascade | None = None
    drift: Drift | None = None
    governor: Governor | None = None
    kpis: Annotated[str, Meta(max_length=63)] = ""
    kpi_options: dict[str, float | str | bool] = {}
