"""Images and labels: from published archives and folders to arrays of bytes."""
