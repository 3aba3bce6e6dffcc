"""Stage 2: training of the generator plugin, and of the tiny base it stands on."""
