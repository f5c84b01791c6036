"""Asks the vendor's library itself what its documents leave open, and measures what they do not tell.

Each question is put in a process of its own (`child`), with the model loaded for it alone and a callback that nothing
stands before (`listener`). A crash, a hang and a refusal are answers too, and the next question is asked all the same.
"""

from npu.rkllm.acceptance.asking import Ended, Found, ask, without_folders
from npu.rkllm.acceptance.material import Material
from npu.rkllm.acceptance.measures import MEASURES
from npu.rkllm.acceptance.notes import Row
from npu.rkllm.acceptance.question import CRASHED, INAPPLICABLE, UNKNOWN, Question
from npu.rkllm.acceptance.questions import QUESTIONS

__all__ = [
    "CRASHED",
    "INAPPLICABLE",
    "MEASURES",
    "QUESTIONS",
    "UNKNOWN",
    "Ended",
    "Found",
    "Material",
    "Question",
    "Row",
    "ask",
    "without_folders",
]
