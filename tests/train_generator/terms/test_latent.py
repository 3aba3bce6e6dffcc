"""What the latent recognizer says of estimated latents: who is known and what is named counts."""

from dataclasses import replace

import torch

from faceclip.data.records import VOCABULARIES
from makeup_plugin.latent_recognizer import LatentRecognizer
from makeup_plugin.losses import feature_distance
from tests.train_generator.terms.samples import gradient_rows, sample_of
from train_generator.terms.latent import latent_losses

READ = {name: list(VOCABULARIES[name]) for name in ("beard", "glasses")}


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_losses_count_known_persons_and_named_attributes():
    torch.manual_seed(2)
    reader = LatentRecognizer(4, 8, (16, 16), 1, 32, READ).eval()
    named = torch.tensor([[True, False], [False, False]])
    sample = sample_of([300, 600], [True, False], classes=torch.tensor([[2, 1], [3, 0]]), named=named)
    losses = latent_losses(sample, reader, draw(), attributes=True)
    estimate = sample.estimate(torch.arange(2))
    again, lower = sample.schedule.noise_again(estimate, sample.timesteps, draw())
    seen = reader(again, lower)
    expected = 1 - torch.cosine_similarity(seen.identity[:1], sample.batch["target_identity"][:1]).mean()
    torch.testing.assert_close(losses["latent_identity"], expected)
    expected = torch.nn.functional.cross_entropy(seen.attributes["beard"][:1], torch.tensor([2]))
    torch.testing.assert_close(losses["latent_attributes"], expected)
    # The same noise on the true latents.
    signal = sample.schedule.alphas_cumprod[lower].sqrt().view(-1, 1, 1, 1)
    true = reader(signal * sample.clean + (again - signal * estimate), lower)
    torch.testing.assert_close(losses["latent_features"], feature_distance(seen.features, true.features))
    assert gradient_rows(losses["latent_identity"] + losses["latent_attributes"], sample) == [True, False]

    both = latent_losses(replace(sample, knows_person=torch.ones(2).bool()), reader, draw(), attributes=False)
    expected = 1 - torch.cosine_similarity(seen.identity, sample.batch["target_identity"]).mean()
    torch.testing.assert_close(both["latent_identity"], expected)

    assert latent_losses(sample, reader, draw(), attributes=False).keys() == {"latent_identity", "latent_features"}
    silent = replace(sample, knows_person=torch.zeros(2).bool(), batch={**sample.batch, "named": named & False})
    losses = latent_losses(silent, reader, draw(), attributes=True)
    assert losses["latent_identity"] == losses["latent_attributes"] == 0
