"""The numbers that the paper prints, their comparison with ours, and our decisions where the paper is silent."""
