"""What a run is: its name, its settings, and what a study of several runs can show."""
