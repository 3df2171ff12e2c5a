"""Records as a table and as a page."""
