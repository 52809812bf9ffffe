"""The float half of a build: stages that change a torch model, and the trainer under them.

Only `registry.py` may be imported by the rest of the host: the other modules import torch when they load.
"""
