"""What `paser init` writes into an empty folder."""
