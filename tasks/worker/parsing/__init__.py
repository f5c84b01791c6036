"""What an engine says made into events: characters, thoughts, calls of tools, stop sequences."""
