"""The report of a study: one HTML page that opens offline."""
