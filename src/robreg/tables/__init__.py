"""The Parquet tables: their columns, how they are written and read, and the metadata that record their origin."""
