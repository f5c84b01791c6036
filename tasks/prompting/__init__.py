"""Between what a client wants and what hardware is told: template, tokens, defaults, limits."""
