"""The ViT-22B family: pure functions and frozen dataclasses."""
