"""File formats that an exporter writes and a runtime reads."""
