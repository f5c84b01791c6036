"""Measures models of a running service, as any client sees them: `rockchipllama bench model`."""
