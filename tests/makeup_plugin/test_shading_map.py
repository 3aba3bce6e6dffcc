"""From a photo to the shading map, through the real fitter and renderer."""

import numpy as np
import torch

from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.frames import FaceFit, move_fit
from faceclip.faces.align import similarity_transform
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene


def test_the_real_fitter_draws_the_map_where_the_face_is(pipeline):
    """A fitter that answers with the render's true parameters, seen in the aligned crop: the pipeline's map must be
    the renderer's own."""
    identity = sample_identity(3, 0)
    scene = sample_scene(3, 0, 1)
    portrait = PortraitRenderer().render(identity, scene, 64)
    truth = FaceFit(
        shape=torch.as_tensor(identity.shape)[None].float(),
        expression=torch.as_tensor(scene.expression)[None].float(),
        pose=torch.tensor([scene.pose]).float(),
        camera=torch.as_tensor(scene.camera.to_array())[None].float(),
        light=torch.as_tensor(scene.light)[None].float(),
    )
    fitter = FaceFitter(image_size=32, widths=(8, 8), hidden=8).eval()
    landmarks = torch.as_tensor(portrait.landmarks_5)[None].float()
    in_crop = move_fit(truth, similarity_transform(landmarks, 32, view=fitter.config.view), before=64, after=32)
    with torch.no_grad():
        fitter.head.weight.zero_()
        fitter.head.bias.zero_()
        fitter.mean.copy_(FaceFitter.pack(in_crop)[0])
    pipeline.register_modules(face_fitter=fitter)
    output = pipeline("a man", portrait.image, landmarks=portrait.landmarks_5, num_inference_steps=1)
    drawn = np.asarray(output.shading_maps[0]).astype(float)
    wanted = portrait.shading.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert (wanted.max(axis=2) > 20).mean() > 0.1
    assert np.abs(drawn - wanted).mean() < 3
    assert np.abs(np.roll(drawn, 3, axis=1) - wanted).mean() > 6  # the test would notice a shift
