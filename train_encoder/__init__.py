"""Stage 1: training of the joint encoder, and of the tiny towers (`train_encoder.towers`)."""

from faceclip.cpu.waiting import choose_waiting

choose_waiting()
