"""HTTP: turns dialects into one request, and one stream of events back into dialects."""
