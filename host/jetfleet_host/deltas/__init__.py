"""Makes deltas between published blobs: predicts tensors, finds moved chunks, packs the rest, and keeps what is least."""
