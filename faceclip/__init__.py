"""The FaceCLIP joint encoder, and the ground that training, plugin and evaluation stand on."""
