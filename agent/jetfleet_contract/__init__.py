"""What jetfleet's host and its boards say to each other, and what each of them decides.

Pure: the standard library and msgspec only. No I/O, no clock, no threads, no randomness; time, ids and
keys are arguments. Both sides import this package; they never import each other.
"""

__version__ = "0.1.0"
CONTRACT_VERSION = 1
