"""The demo: a whole fleet on one machine, on frames whose truth is known."""
