"""Requests out of Ollama bodies, and Ollama answers out of events; a file for each kind of thing."""
