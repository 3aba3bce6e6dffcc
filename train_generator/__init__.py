"""Stage 2: training of the generator plugin, and of the tiny base it stands on."""

from faceclip.cpu.waiting import choose_waiting

choose_waiting()
