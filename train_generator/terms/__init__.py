"""The terms of stage 2's loss, one module each, as functions of a `Sample`.

denoising: the error of the prediction. alignment: words attend to what they describe. identity: the facial perceptual
loss on estimated pictures. sampled_identity: the same by reward feedback, on pictures that the model draws itself.
prior: how far words alone lead from what the base predicts.
latent: what a network that reads noisy latents says of person, attributes and features.
"""
