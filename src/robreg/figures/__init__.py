"""The figures, drawn from the tables of a study's runs."""
