"""Published adapters and models of other projects, drawn with by `FaceMakeUpPipeline.from_published`."""
