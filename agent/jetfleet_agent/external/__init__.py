"""The `exec` runner: delivery for a program that exists already (DeepStream, Triton, a C++ binary). See docs/external.md."""
