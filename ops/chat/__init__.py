"""Talking to a model of a running service from a terminal."""
