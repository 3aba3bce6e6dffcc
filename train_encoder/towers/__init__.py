"""Commands that train the tiny frozen towers which stage 1, the pipeline and the evaluation stand on."""
