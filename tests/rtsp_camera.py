"""A camera that serves RTSP, run by the system's Python (it alone has gi): ``python3 rtsp_camera.py '{"width": 320, ...}'``.

The encoder runs whether somebody watches or not, as a camera's does, so a client that connects starts in the middle of a group of pictures.
Says one JSON line ``{"port": N}`` when it serves; then takes one JSON command a line and answers each with ``{"done": NAME}``:

    {"do": "pause"} {"do": "resume"}        frames are made but not sent; connections stay
    {"do": "size", "width": W, "height": H} another resolution from the next frame on
    {"do": "key"}                           a key frame now
    {"do": "damage", "every": N}            overwrite the middle of every N-th access unit (0: none)

Ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer, GstVideo  # noqa: E402

_X264 = "x264enc tune=zerolatency speed-preset=ultrafast bitrate=2000 byte-stream=true sliced-threads=false key-int-max={gop} {encoder}"
ENCODERS = {
    "h264": (_X264,
             "h264parse config-interval=-1", "rtph264pay name=pay0 pt=96"),
    "mjpeg": ("jpegenc", "jpegparse", "rtpjpegpay name=pay0 pt=26"),
}
CAPS = {"h264": "video/x-h264,stream-format=byte-stream,alignment=au", "mjpeg": "image/jpeg"}


class Camera:
    """One encoder; every client that plays gets its own appsrc fed from it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = {"width": 320, "height": 240, "fps": 30, "gop": 30, "codec": "h264", "format": "I420", "audio": False,
                         "video": True, "encoder": "", "pattern": "ball", **options}
        self._sources: list[Any] = []
        self._lock = threading.Lock()
        self._caps: Any = None
        self.first = threading.Event()
        self._paused = False
        self._damage_every = 0
        self._sent = 0
        encoder, parser, _ = ENCODERS[self._options["codec"]]
        self._pipeline = Gst.parse_launch(
            f"videotestsrc is-live=true pattern={self._options['pattern']} ! capsfilter name=caps ! queue max-size-buffers=2 ! "
            f"{encoder.format(**self._options)} name=encoder ! {parser} ! {CAPS[self._options['codec']]} ! "
            "appsink name=out emit-signals=true sync=false max-buffers=8")
        self.size(self._options["width"], self._options["height"])
        self._pipeline.get_by_name("out").connect("new-sample", self._encoded)

    def size(self, width: int, height: int) -> None:
        caps = f"video/x-raw,format={self._options['format']},width={width},height={height},framerate={self._options['fps']}/1"
        self._pipeline.get_by_name("caps").set_property("caps", Gst.Caps.from_string(caps))

    def _encoded(self, sink: Any) -> Any:
        sample = sink.emit("pull-sample")
        buffer, self._caps = sample.get_buffer(), sample.get_caps()
        self.first.set()
        if self._paused:
            return Gst.FlowReturn.OK
        data = bytearray(buffer.extract_dup(0, buffer.get_size()))
        self._sent += 1
        if self._damage_every and self._sent % self._damage_every == 0 and len(data) > 64:
            middle = len(data) // 2
            data[middle:middle + 24] = bytes(range(0x40, 0x58))
        with self._lock:
            sources = list(self._sources)
        for source in sources:
            source.emit("push-buffer", Gst.Buffer.new_wrapped(bytes(data)))
        return Gst.FlowReturn.OK

    def serve(self) -> int:
        """Start; the port."""
        server = self.server = GstRtspServer.RTSPServer()
        server.set_address("127.0.0.1")
        server.set_service(str(self._options.get("port", 0)))
        factory = GstRtspServer.RTSPMediaFactory()
        _, _, payloader = ENCODERS[self._options["codec"]]
        video = (f"appsrc name=video is-live=true do-timestamp=true format=time caps={CAPS[self._options['codec']]} ! "
                 f"{payloader}") if self._options["video"] else ""
        index = 1 if self._options["video"] else 0
        audio = f"audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay{index} pt=8" if self._options["audio"] else ""
        factory.set_launch(f"( {video} {audio} )")
        factory.set_shared(False)
        factory.connect("media-configure", self._configured)
        server.get_mount_points().add_factory("/live", factory)
        self._protect(server, factory)
        server.attach(None)
        self._pipeline.set_state(Gst.State.PLAYING)
        return int(server.get_bound_port())

    def _configured(self, _: Any, media: Any) -> None:
        source = media.get_element().get_by_name("video")
        if source is None:
            return
        source.set_property("caps", self._caps)
        with self._lock:
            self._sources.append(source)
        media.connect("unprepared", lambda _: self._gone(source))

    def _gone(self, source: Any) -> None:
        with self._lock:
            self._sources = [one for one in self._sources if one is not source]

    def _protect(self, server: Any, factory: Any) -> None:
        user, certificate = self._options.get("user"), self._options.get("certificate")
        if not user and not certificate:
            return
        auth = GstRtspServer.RTSPAuth()
        if certificate:
            auth.set_tls_certificate(Gio.TlsCertificate.new_from_files(certificate, self._options["key"]))
        role = "viewer" if user else "anonymous"
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", role)
        if user and self._options.get("auth") == "digest":
            auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
            auth.add_digest(user, self._options["password"], token)
        elif user:
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, self._options["password"]), token)
        else:
            auth.set_default_token(token)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role(role, "media.factory.access", True)
        permissions.add_permission_for_role(role, "media.factory.construct", True)
        factory.set_permissions(permissions)
        server.set_auth(auth)

    def do(self, command: dict[str, Any]) -> None:
        name = command["do"]
        if name in {"pause", "resume"}:
            self._paused = name == "pause"
        elif name == "size":
            self.size(command["width"], command["height"])
        elif name == "damage":
            self._damage_every = command["every"]
        elif name == "key":
            event = GstVideo.video_event_new_upstream_force_key_unit(Gst.CLOCK_TIME_NONE, True, 0)
            self._pipeline.get_by_name("encoder").get_static_pad("src").send_event(event)
        else:
            raise ValueError(name)


def main() -> None:
    Gst.init(None)
    camera = Camera(json.loads(sys.argv[1]))
    loop = GLib.MainLoop()
    port = camera.serve()
    if not camera.first.wait(30):
        sys.exit("the encoder gives nothing")
    print(json.dumps({"port": port}), flush=True)

    def commands() -> None:
        for line in sys.stdin:
            command = json.loads(line)
            camera.do(command)
            print(json.dumps({"done": command["do"]}), flush=True)
        loop.quit()

    threading.Thread(target=commands, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
