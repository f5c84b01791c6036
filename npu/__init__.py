"""Turns a prompt into pieces of text on hardware; knows nothing of jobs, wire formats or HTTP."""
