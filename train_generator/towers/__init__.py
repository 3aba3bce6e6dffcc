"""The tiny generator base: a small autoencoder and a small SDXL UNet, trained on synthetic identities."""
