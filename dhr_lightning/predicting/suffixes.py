"""Suffixes of the files that hold a segmenter."""

CHECKPOINT, ONNX, PORTABLE = SUFFIXES = (".ckpt", ".onnx", ".safetensors")
