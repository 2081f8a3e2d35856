"""Every Parquet file: its columns, how it is written and read, and what it says of its origin."""
