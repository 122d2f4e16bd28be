"""What is deployed: one small file each."""

from peftkit.exporters.adapter import Adapter
from peftkit.exporters.base import Exporter
from peftkit.exporters.gguf import Gguf
from peftkit.exporters.merged import Merged
from peftkit.exporters.onnx import Onnx
from peftkit.exporters.openvino import OpenVino
from peftkit.exporters.quantized import Quantized
from peftkit.exporters.torch_export import Torch

__all__ = ["Adapter", "Exporter", "Gguf", "Merged", "Onnx", "OpenVino", "Quantized", "Torch"]
