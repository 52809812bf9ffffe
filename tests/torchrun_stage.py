"""What every process under torchrun does: tune a net in a workshop of its own folder argument and write down the weights it ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from float_worlds import PlainNet, seeded, workshop

from jetfleet_host.compress.floating.epoch_state import weights_digest
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.recipe_file import Tune

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    config = Tune(epochs=1)
    model = stage_for(config)(seeded(PlainNet), config, workshop(folder))
    (folder / f"rank{os.environ['RANK']}").write_text(weights_digest(model))
