"""Stage 2: training of the generator plugin, and of the tiny base that it is built on."""

from faceclip.cpu.waiting import choose_waiting

choose_waiting()
