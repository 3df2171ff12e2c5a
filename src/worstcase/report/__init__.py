"""Records as a table and as a page: your runs, and the paper's figures and tables with its numbers beside ours."""
