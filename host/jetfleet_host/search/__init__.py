"""Search over recipes: accuracy and the target's latency as objectives, resumable, with storage that several machines may share."""
