"""Converts models for the NPU with Rockchip's rkllm-toolkit, on an x86 PC: `python ops/convert/convert.py RECIPE`.

It runs in the Python the toolkit is installed in, which has neither our virtual environment nor our dependencies. So what
is imported here needs nothing beyond the standard library, jinja2, and what the toolkit itself brings along.
"""
