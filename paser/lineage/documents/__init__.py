"""Standard documents, each made from an audit entry alone, so that any old entry can still be exported."""
