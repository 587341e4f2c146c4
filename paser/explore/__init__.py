"""`paser explore`: a project's rows in a browser, on this machine only."""
