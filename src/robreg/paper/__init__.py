"""The numbers that the paper prints, beside ours, and what was decided where the paper is silent."""
