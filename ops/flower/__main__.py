"""Flower in a container: `python -m ops.flower`. Who may come there is decided by where its port is published."""

from ops.configuration import load
from ops.flower.server import serve
from ops.flower.settings import FlowerSettings

settings = load(FlowerSettings)
serve(settings, settings.flower_host, settings.flower_port)
