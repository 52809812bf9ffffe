"""The device side of jetfleet: a supervisor (network, no devices) and pipelines (devices, no network)."""
