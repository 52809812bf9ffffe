"""The device side: cameras and accelerators. Talks to its supervisor only, through `jetfleet_agent.ipc`."""
