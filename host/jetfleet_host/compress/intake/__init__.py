"""What a build takes in: models in every format that has a road to ONNX, and labelled images in every form that has one to files."""
