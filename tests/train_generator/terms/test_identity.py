"""The facial perceptual loss: whose face estimated pictures show, and which samples are asked."""

import pytest
import torch
from diffusers import AutoencoderKL

from faceclip.faces.align import align_tensor
from faceclip.towers.face import FaceViT
from makeup_plugin.losses import decode_latents
from tests.train_generator.terms.samples import TEMPLATE, gradient_rows, sample_of
from train_generator.terms.identity import LatentFaces, OtherPeople, face_distance, facial_perceptual_loss


@pytest.fixture(scope="module")
def faces() -> LatentFaces:
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    )
    recognizer = FaceViT(image_size=18, patch_size=9, width=24, depth=1, heads=2, embedding_dim=32)
    return LatentFaces(vae=vae.eval().requires_grad_(False), recognizer=recognizer.eval().requires_grad_(False))


def test_the_distance_is_one_minus_cosine_with_gradients():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)

    def embed(crops):  # mean colour
        assert crops.shape == (2, 3, 16, 16)
        return crops.mean(dim=(2, 3))

    landmarks = 32 * TEMPLATE.expand(2, 5, 2)
    colors = align_tensor(images, landmarks, 16).mean(dim=(2, 3))
    identity = torch.stack([colors[0] * 3, torch.tensor([0.0, 0.0, 1.0])]).detach()
    value = face_distance(images, landmarks, identity, embed, crop_size=16)
    cosine = torch.nn.functional.cosine_similarity(colors[1:], identity[1:])
    assert value.item() == pytest.approx((0 + 1 - cosine.item()) / 2, abs=1e-5)
    value.backward()
    assert images.grad[1].abs().sum() > 0


def test_it_is_the_mean_distance_in_the_estimated_pictures(faces):
    sample = sample_of([100, 200, 300], [True, True, True])
    expected = []
    for row in range(3):
        rows = torch.tensor([row])
        image = decode_latents(faces.vae, sample.estimate(rows))
        crop = align_tensor(image, sample.batch["landmarks"][rows], 18)
        seen = faces.recognizer(crop).identity
        expected.append(1 - torch.cosine_similarity(seen, sample.batch["target_identity"][rows])[0])
    for at_once in (1, 2, 8):
        found = facial_perceptual_loss(sample, faces, below=300, limit=8, at_once=at_once)
        torch.testing.assert_close(found, torch.stack(expected).mean())


def test_the_noisiest_samples_within_the_window_that_know_the_person_count(faces):
    sample = sample_of([40, 300, 301, 200, 250], [True, True, True, True, False])
    options = {"below": 300, "at_once": 2}
    assert gradient_rows(facial_perceptual_loss(sample, faces, limit=8, **options), sample) == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert gradient_rows(facial_perceptual_loss(sample, faces, limit=2, **options), sample) == [
        False,
        True,
        False,
        True,
        False,
    ]
    clear = sample_of([999, 0], [True, True])  # also a sample without noise goes before those that do not count
    assert gradient_rows(facial_perceptual_loss(clear, faces, limit=1, **options), clear) == [False, True]
    nothing = facial_perceptual_loss(sample, faces, below=10, limit=8, at_once=2)
    assert nothing == 0 and nothing.requires_grad


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_always_as_many_samples_give_the_same_loss(faces, kind):
    """Samples that do not count are decoded and weigh nothing, even at no signal, where the estimate has no bounds."""
    sample = sample_of([40, 300, 999, 200, 250], [True, True, True, True, False], kind)
    sample.schedule.alphas_cumprod[999] = 0
    sample.batch["person"] = torch.arange(5)
    people = OtherPeople(torch.randn(6, 32), torch.arange(6), weight=0.25, temperature=0.1)
    faces = LatentFaces(vae=faces.vae, recognizer=faces.recognizer, others=people)
    for limit, at_once in ((8, 2), (2, 4), (4, 3)):
        options = {"below": 300, "limit": limit, "at_once": at_once}
        values = [facial_perceptual_loss(sample, faces, fixed=fixed, **options) for fixed in (False, True)]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*[torch.autograd.grad(value, sample.prediction)[0] for value in values])
    nothing = facial_perceptual_loss(sample, faces, below=10, limit=8, at_once=2, fixed=True)
    (gradient,) = torch.autograd.grad(nothing, sample.prediction)
    assert nothing == 0 and not gradient.any()


def test_a_face_is_told_from_those_of_others_and_not_from_its_own_person():
    others = OtherPeople(5 * torch.eye(3), torch.tensor([7, 8, 9]), weight=0.5, temperature=0.5)
    seen = torch.tensor([[0.6, 0.8, 0.0]], requires_grad=True)
    own = torch.tensor([[2.0, 0.0, 0.0]])
    # Person 7 among 8 and 9: cosines .6 against .8 and 0, over the temperature.
    expected = -torch.tensor([1.2, 1.6, 0.0]).log_softmax(0)[0]
    found = others(seen, own, torch.tensor([7]))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(others(3 * seen, own, torch.tensor([7])), expected)
    found.backward()
    assert seen.grad[0, 0] < 0 < seen.grad[0, 1]  # towards its own person, away from the one it looks like
    assert not others.state_dict()


def test_others_add_their_weighted_loss(faces):
    sample = sample_of([100, 200], [True, True])
    sample.batch["person"] = torch.tensor([1, 2])
    people = OtherPeople(torch.randn(6, 32), torch.arange(6), weight=0.25, temperature=0.1)
    rows, latents = torch.tensor([0, 1]), sample.estimate(torch.tensor([0, 1]))
    plain = faces.distance(latents, sample, rows)
    crops = align_tensor(decode_latents(faces.vae, latents), sample.batch["landmarks"], 18)
    own = people(faces.recognizer(crops).identity, sample.batch["target_identity"], sample.batch["person"])
    told = LatentFaces(vae=faces.vae, recognizer=faces.recognizer, others=people)
    torch.testing.assert_close(told.distance(latents, sample, rows), plain + 0.25 * own)
