"""`python -m jetfleet_host` is `jetfleet`."""

from __future__ import annotations

from jetfleet_host.cli import main

if __name__ == "__main__":
    main()
