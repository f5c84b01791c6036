"""A simulator of Rockchip's RKLLM runtime, for machines without an NPU, for tests and for planning capacity.

`build` compiles a shared library with the layout of any family of the runtime, `write_model` writes a model folder for it,
and `SimulatedModel.language` tells what that model will say. It models time, state, failures and the checks of a strict
reader of the API, and no language: see `rkllm_simulator.c`.
"""

from npu.simulator.language import Adapter, Language
from npu.simulator.library import Defaults, build
from npu.simulator.model import SWITCHES, SimulatedModel, write_adapter, write_model
from npu.simulator.profile import Profile, profile_of

__all__ = [
    "SWITCHES",
    "Adapter",
    "Defaults",
    "Language",
    "Profile",
    "SimulatedModel",
    "build",
    "profile_of",
    "write_adapter",
    "write_model",
]
