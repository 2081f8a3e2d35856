"""Adversarial attacks (PGD, FGSM and APGD), and counting the examples that stay correctly classified under them."""
