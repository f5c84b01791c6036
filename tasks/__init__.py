"""Carries requests down and events up through Redis. The root is safe for any process."""
