"""Images for training and evaluation, from a spec to batches on the mesh."""
