"""Batches from the command line: a client of the service like any other, that speaks HTTP."""
