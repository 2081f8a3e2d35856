"""Read data sets from published archives and folders, and prepare them as arrays of bytes."""
