"""What the commands that train small towers and judges share: the command itself, model cards, measures, samples."""
