"""ONNX files as differentiable torch computations, run by our own interpreter of their graphs."""
