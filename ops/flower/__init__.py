"""Flower, which shows the calls of a service and its workers."""
