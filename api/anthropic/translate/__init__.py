"""Requests out of Anthropic bodies, and Anthropic answers out of events."""
