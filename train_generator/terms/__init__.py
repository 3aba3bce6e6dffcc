"""The terms of stage 2's loss, one module each, as functions of a `Sample`.

- denoising: error of the prediction.
- alignment: words attend to the regions that they describe.
- identity: facial perceptual loss on estimated pictures.
- sampled_identity: the same by reward feedback, on pictures that the model draws itself.
- prior: distance from the base's predictions on words alone.
"""
