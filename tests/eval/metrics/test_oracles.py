"""The cores against torchmetrics and torch-fidelity on equal features, to 1e-4, where these are installed."""

import numpy as np
import pytest
import torch
from torch import nn

from eval.metrics.distances import frechet_distance, kernel_inception_distance
from eval.metrics.models import InceptionModel, LpipsModel
from eval.metrics.pictures import perceptual_distance, text_similarity
from faceclip.errors import CheckpointError


class Flat(nn.Module):
    """The first pixels of a picture as its features."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1)[:, : self.num_features].float()


@pytest.fixture(scope="module")
def two_sets():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, high, (60, 3, 2, 2), generator=generator, dtype=torch.uint8) for high in (200, 255)]


def test_frechet_distance_is_that_of_torchmetrics(two_sets):
    image = pytest.importorskip("torchmetrics.image.fid")
    oracle = image.FrechetInceptionDistance(feature=Flat())
    features = [Flat()(images).numpy() for images in two_sets]
    oracle.update(two_sets[0], real=True)
    oracle.update(two_sets[1], real=False)
    assert frechet_distance(*features) == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_kernel_distance_is_that_of_torchmetrics(two_sets):
    image = pytest.importorskip("torchmetrics.image.kid")
    oracle = image.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60)
    oracle.update(two_sets[0], real=True)
    oracle.update(two_sets[1], real=False)
    features = [Flat()(images).numpy() for images in two_sets]
    assert kernel_inception_distance(*features).mean == pytest.approx(float(oracle.compute()[0]), rel=1e-4)


def test_both_distances_are_those_of_torch_fidelity(two_sets):
    fid, kid = (pytest.importorskip(f"torch_fidelity.metric_{name}") for name in ("fid", "kid"))
    features = [Flat()(images) for images in two_sets]
    statistics = [fid.fid_features_to_statistics(part) for part in features]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    arrays = [part.numpy() for part in features]
    assert frechet_distance(*arrays) == pytest.approx(expected, rel=1e-4)
    whole = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    found = kid.kid_features_to_metric(*features, **whole)["kernel_inception_distance_mean"]
    assert kernel_inception_distance(*arrays).mean == pytest.approx(found, rel=1e-4)


def test_clip_score_is_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.pairwise")
    rng = np.random.default_rng(0)
    pictures, texts = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    expected = functional.pairwise_cosine_similarity(torch.tensor(pictures), torch.tensor(texts)).diagonal()
    np.testing.assert_allclose(text_similarity(pictures, texts), 100 * expected.clamp(min=0), atol=1e-4)


@pytest.fixture(scope="module")
def alexnet_weights(tmp_path_factory):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    model = alexnet(weights=None)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save({name: value for name, value in model.state_dict().items() if "features" in name}, path)
    return path, model.features


def test_lpips_is_that_of_torchmetrics(alexnet_weights):
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    path, features = alexnet_weights
    oracle = lpips._LPIPS(pretrained=True, net="alex", pnet_rand=True)
    flat = [layer for part in (getattr(oracle.net, f"slice{n}") for n in range(1, 6)) for layer in part]
    for mine, theirs in zip(features, flat, strict=False):
        theirs.load_state_dict(mine.state_dict())
    first, second = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    model = LpipsModel(str(path))
    found = perceptual_distance(model.maps(first), model.maps(second), model.weights)
    np.testing.assert_allclose(found, oracle(first, second, normalize=True).flatten(), atol=1e-4)
    assert (found > 0.001).all()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model.maps(first * 2 - 1)


def test_weights_with_code_are_refused(tmp_path):
    pytest.importorskip("torch_fidelity")
    path = tmp_path / "inception.pth"
    torch.save({"layer": np.zeros(3)}, path)  # an object that only a pickle with code can make
    for model in (LpipsModel, InceptionModel):
        with pytest.raises(CheckpointError, match=r"inception\.pth"):
            model(str(path))
    torch.save({"features.0.weight": torch.zeros(3)}, path)
    for model in (LpipsModel, InceptionModel):
        with pytest.raises(CheckpointError, match=r"inception\.pth"):
            model(str(path))
