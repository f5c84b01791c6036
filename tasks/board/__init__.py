"""The agent of one board: finds models, keeps worker processes, answers commands."""
