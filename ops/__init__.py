"""The operations side: command line, the supervisor behind `up`, model downloads, generated pages."""
