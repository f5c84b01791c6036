"""Measures what the service itself costs, beside the engine: `rockchipllama bench`."""
