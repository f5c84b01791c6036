"""Flower in a container: `python -m ops.flower`. Who may come there is decided by where its port is published."""

import sys

from ops.configuration import ConfigurationError, load
from ops.flower.server import serve
from ops.flower.settings import FlowerSettings

try:
    settings = load(FlowerSettings)
    serve(settings, settings.flower_host, settings.flower_port)
except ConfigurationError as error:
    sys.exit(str(error))
