"""Requests out of OpenAI bodies, and OpenAI answers out of events; a file for each endpoint."""
