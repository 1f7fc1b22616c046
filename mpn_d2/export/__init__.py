"""The whole pipeline as one file that runs without this package: ONNX or TorchScript.

The packages of the extra `export` (onnx, onnxruntime) are imported where they are used.
"""
