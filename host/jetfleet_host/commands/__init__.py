"""The commands of `jetfleet`, one module a subject; part of the composition root `cli.py`."""
