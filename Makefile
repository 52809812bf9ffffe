# jetfleet: two commands do all the set-up on a fresh Debian or Ubuntu machine with Python >= 3.11.
#
#   make demo        the whole loop on this machine, on real frames (about four minutes the first time)
#   make test        lint, types, layering and the test suite
#   make test-slow   the slow suites (whole demo, kill matrices, power cuts, partitions, 2 GB, long property runs)
#   make bench       every benchmark; writes benchmarks/results/*.json
#   make check       ruff, mypy, import-linter only

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell .ci/find-python)
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install -c constraints.txt
SERVERS := mosquitto:mosquitto nginx:nginx-light openssl:openssl ip:iproute2 sshd:openssh-server
# A camera for the tests: GStreamer's RTSP server, from the system's Python.
GST := /usr/lib/*/gstreamer-1.0
CAMERA := /usr/lib/python3/dist-packages/gi:python3-gi /usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib:gir1.2-gst-rtsp-server-1.0 \
	/usr/lib/*/girepository-1.0/GstVideo-1.0.typelib:gir1.2-gst-plugins-base-1.0 $(GST)/libgstapp.so:gstreamer1.0-plugins-base \
	$(GST)/libgstrtp.so:gstreamer1.0-plugins-good $(GST)/libgstx264.so:gstreamer1.0-plugins-ugly \
	$(GST)/libgstvideoparsersbad.so:gstreamer1.0-plugins-bad

.PHONY: demo test test-slow test-board check bench clean

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; install python3.11 or newer, or set PYTHON=" >&2; exit 1; }
	@.ci/need --venv $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "make: installing jetfleet with its demo extra into $(VENV)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "make: installing jetfleet with its dev extra into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/jetfleet demo --out demo-out $(DEMO_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	@.ci/need $(SERVERS) $(CAMERA)
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: $(VENV)/.dev
	@.ci/need $(SERVERS) $(CAMERA) postgres:postgresql g++:g++
	$(BIN)/pytest -m 'slow and not gpu and not jetson' --timeout=900 $(PYTEST_ARGS)

# On a board, or on a machine with an NVIDIA GPU.
test-board: $(VENV)/.dev
	$(BIN)/pytest -m 'gpu or jetson' --timeout=900 $(PYTEST_ARGS)

bench: $(VENV)/.dev
	@.ci/need $(SERVERS) $(CAMERA) ffmpeg:ffmpeg curl:curl casync:casync zck:zchunk xdelta3:xdelta3 bsdiff:bsdiff zstd:zstd
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache
