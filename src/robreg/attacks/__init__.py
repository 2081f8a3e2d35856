"""Adversarial examples: PGD, FGSM and APGD, and how many examples survive them."""
