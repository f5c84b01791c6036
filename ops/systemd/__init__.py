"""The service under systemd: its units, and how they are put into place."""
