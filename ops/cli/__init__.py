"""The command `rockchipllama`, one file a command."""
