"""Engines made on the host: TensorRT for RTX ahead of time, and the screening of models for every TensorRT."""
