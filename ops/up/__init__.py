"""The whole service on one machine: what `rockchipllama up` starts, watches and stops."""
