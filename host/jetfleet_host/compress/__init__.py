"""From one trained ONNX file to the variants that boards can choose from.

Passes are frozen structs: their fields are their configuration, `apply` takes a model and gives a model. Each stage
leaves a checkpoint (`checkpoints`), each float pass is checked against the original (`equality`), each lossy one is
scored on data in a process of its own (`scoring`) and refused past the limit.
"""
