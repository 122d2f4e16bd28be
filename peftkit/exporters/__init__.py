"""What is deployed: one small file each."""

from peftkit.exporters.adapter import Adapter
from peftkit.exporters.base import Exporter
from peftkit.exporters.merged import Merged

__all__ = ["Adapter", "Exporter", "Merged"]
