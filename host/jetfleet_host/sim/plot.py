"""The picture of a run: how many devices were in which phase, over time. Colours are Okabe and Ito's (2008)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jetfleet_contract.errors import StorageError

from .fleet import Sample

PHASES = {"updated": "#009E73", "keeping": "#56B4E9", "trial": "#0072B2", "probing": "#CC79A7", "choosing": "#F0E442",
          "fetching": "#E69F00", "idle": "#DDDDDD", "down": "#D55E00"}


def phases_plot(path: Path, samples: Sequence[Sample], title: str) -> Path:
    """Draw it as stacked areas. StorageError `sim.plot` when the file cannot be written."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4.5))
    at = [sample.at for sample in samples]
    counts = [[sample.phases.get(phase, 0) for sample in samples] for phase in PHASES]
    axes.stackplot(at, counts, labels=list(PHASES), colors=list(PHASES.values()), linewidth=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel("seconds since the devices were made")
    axes.set_ylabel("devices")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise StorageError("sim.plot", f"cannot write the picture: {error.strerror}", where=str(path)) from None
    finally:
        plt.close(figure)
    return path
