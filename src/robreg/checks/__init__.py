"""What cannot be otherwise if result tables are right, for a run and for a study."""
