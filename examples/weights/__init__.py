"""Weights in and out: our own files, public `.npz` and timm's safetensors."""
