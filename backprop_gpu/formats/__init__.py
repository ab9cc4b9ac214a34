"""Networks in the formats of others: ONNX, Keras' files and C."""

from .c_header import to_c
from .keras_reader import from_keras
from .onnx_reader import from_onnx
from .onnx_writer import to_onnx

__all__ = ["from_keras", "from_onnx", "to_c", "to_onnx"]
