"""Stage 1: training of the joint encoder, and of the tiny towers it stands on."""
