"""Finished runs as a table and as an HTML page."""
