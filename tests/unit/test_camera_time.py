"""Pure parts of cameras: RTP stamps on our clock, pauses between tries, the CSI pipeline; and a real GStreamer pipeline read."""

from __future__ import annotations

from cameras import need_gstreamer
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.pipeline.sources import FreshBuffers, open_source
from jetfleet_agent.pipeline.sources.csi import csi_pipeline
from jetfleet_contract.camera_time import CameraClock
from jetfleet_contract.messages import Source
from jetfleet_contract.policy import decorrelated, patience


@given(st.lists(st.floats(0, 0.2), min_size=2, max_size=60), st.floats(-1e6, 1e6))
def test_no_frame_is_from_the_future_and_jitter_is_all_its_age(delays: list[float], origin: float) -> None:
    clock = CameraClock()
    for index, delay in enumerate(delays):
        now = 100.0 + index / 25 + delay
        late = clock.arrived(origin + index / 25, now)
        assert 0 <= late <= 0.2 + 1e-6
        assert clock.taken_at(origin + index / 25, now) <= now


def test_lag_that_grows_shows() -> None:
    clock = CameraClock()
    late = [clock.arrived(i / 25, 100.0 + i / 25 * 1.1) for i in range(1500)]
    assert late[-1] > 5.9


@given(st.floats(0, 30), st.floats(0, 1))
def test_pauses_stay_within_their_bounds(previous: float, unit: float) -> None:
    assert 0.5 <= decorrelated(previous, unit) <= min(30.0, max(0.5, 3 * previous)) + 1e-9


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_patience_grows_with_the_outage(a: float, b: float) -> None:
    assert 0.75 <= patience(min(a, b)) <= patience(max(a, b)) <= 30.0
    assert patience(6.0) == 0.75, "a camera that was away for some seconds is tried again at once"


def test_the_csi_pipeline() -> None:
    assert csi_pipeline("csi://1?width=1920&height=1080&fps=60&flip=2") == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),format=NV12,width=1920,height=1080,framerate=60/1 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=NV12")


def test_a_real_gstreamer_pipeline_gives_its_picture_and_stamp() -> None:
    need_gstreamer()
    for form in ("BGR", "NV12"):
        reader = open_source(Source("a", f"gst:videotestsrc is-live=true pattern=red ! video/x-raw,format={form},width=322,height=240"))
        reader.open()
        shot = reader.read(FreshBuffers())
        reader.close()
        assert shot is not None
        assert shot.image.shape == (240, 322, 3)
        assert shot.image[..., 2].min() > 236
        assert shot.clock == "sensor"
