"""The worker process: holds one engine, claims jobs, runs them."""
