"""What is measured on one trained network; each module fills one of the run's tables."""
