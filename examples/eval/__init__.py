"""The evaluations of the ViT-22B paper: one command for each protocol."""
