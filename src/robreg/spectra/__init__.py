"""What a layer does as a linear map: its singular values, and the projection onto a spectral norm."""
