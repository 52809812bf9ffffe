"""``csi://N?width=W&height=H&fps=F&flip=K``: the sensors of a Jetson's CSI port, through NVIDIA's camera stack."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from jetfleet_contract.errors import InputError

# For each option its default, least and most.
_OPTIONS = {"width": (1280, 64, 8192), "height": (720, 64, 8192), "fps": (30, 1, 240), "flip": (0, 0, 7), "mode": (-1, -1, 31)}


def csi_pipeline(uri: str) -> str:
    """The GStreamer pipeline, NV12 in main memory at its end. `flip` is nvvidconv's flip-method, `mode` the sensor's (-1: the driver's
    choice).

    Raises:
        InputError: `source.uri`.
    """
    try:
        parts = urlsplit(uri)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _wrong(uri, "cannot be read") from None
    if not re.fullmatch(r"\d{1,2}", parts.netloc) or parts.path not in {"", "/"} or parts.fragment:
        raise _wrong(uri, "names no sensor")
    values = {name: default for name, (default, _, _) in _OPTIONS.items()}
    for name, text in given:
        if name not in _OPTIONS:
            raise _wrong(uri, f"has no option {name[:20]!r}")
        _, least, most = _OPTIONS[name]
        if not re.fullmatch(r"-?\d{1,5}", text) or not least <= int(text) <= most:
            raise _wrong(uri, f"wants {name} between {least} and {most}")
        values[name] = int(text)
    mode = f" sensor-mode={values['mode']}" if values["mode"] >= 0 else ""
    return (f"nvarguscamerasrc sensor-id={int(parts.netloc)}{mode} ! "
            f"video/x-raw(memory:NVMM),format=NV12,width={values['width']},height={values['height']},framerate={values['fps']}/1 ! "
            f"nvvidconv flip-method={values['flip']} ! video/x-raw,format=NV12")


def _wrong(uri: str, what: str) -> InputError:
    return InputError("source.uri", f"{uri[:80]!r} {what}", remedy="write csi://0?width=1280&height=720&fps=30&flip=0")
