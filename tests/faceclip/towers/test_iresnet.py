"""arcface_torch's residual networks and transformers of any size, from files that the tests write in that layout."""

import pytest
import torch
import torch.nn.functional as F

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError
from faceclip.storage.hashes import module_hash
from faceclip.towers.face import FaceViT
from faceclip.towers.iresnet import DEPTHS, FaceResNet
from faceclip.towers.pretrained import load_tower
from faceclip.towers.recognizers import recognizer_facts
from faceclip.towers.text import TextTower

SMALL = {"layers": (1, 2, 1, 1), "widths": (4, 6, 8, 10), "image_size": 32, "embedding_dim": 12, "width": 10}


@pytest.fixture
def network() -> FaceResNet:
    """With statistics and slopes that are not those of a new network."""
    torch.manual_seed(0)
    network = FaceResNet(**SMALL)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def file(network, tmp_path):
    state = {name: value for name, value in network.state_dict().items() if name != "pos_embed"}
    torch.save(state, tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


def by_hand(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The published forward pass, written out."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        fields = [state[f"{name}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *fields, eps=1e-5)

    x = F.conv2d((images - 0.5) / 0.5, state["conv1.weight"], padding=1)
    x = F.prelu(norm("bn1", x), state["prelu.weight"])
    for stage, count in enumerate(SMALL["layers"], start=1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = F.conv2d(norm(f"{name}.bn1", x), state[f"{name}.conv1.weight"], padding=1)
            y = F.prelu(norm(f"{name}.bn2", y), state[f"{name}.prelu.weight"])
            y = norm(f"{name}.bn3", F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1))
            if block == 0:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
            x = x + y
    x = norm("bn2", x).flatten(1)
    return norm("features", F.linear(x, state["fc.weight"], state["fc.bias"]))


def test_identities_are_those_of_the_published_forward_pass(network, file):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loaded = load_tower(f"arcface:{file}", "face")
    assert isinstance(loaded, FaceResNet)
    torch.testing.assert_close(loaded(images).identity, by_hand(network.state_dict(), images), atol=1e-4, rtol=1e-4)
    assert loaded(images).tokens.shape == (3, loaded.grid**2, 10)
    large = F.interpolate(images, (64, 64), mode="nearest")
    torch.testing.assert_close(loaded(large).identity, loaded(images).identity, atol=1e-4, rtol=1e-4)
    facts = recognizer_facts(f"arcface:{file}", loaded)
    assert facts.differentiable and not facts.commercial_ok and facts.mean[0] == facts.scale == 127.5


@pytest.mark.parametrize("depth", [18, 50, 100])
def test_published_depths_have_their_published_names(depth):
    with torch.device("meta"):
        names = FaceResNet(layers=DEPTHS[depth]).state_dict().keys()
    convolutions = sum(name.endswith(("conv1.weight", "conv2.weight")) for name in names)
    assert convolutions == {18: 17, 50: 49, 100: 99}[depth]  # the layer that gives the embedding makes the number round
    assert {"layer4.1.bn3.running_var", "layer1.0.downsample.1.weight", "features.bias", "fc.bias"} <= set(names)


def test_gradients_reach_the_picture_and_a_joint_encoder_round_trips(file, tmp_path):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loaded = load_tower(f"arcface:{file}", "face")
    loaded(images).identity.square().sum().backward()
    assert images.grad.abs().sum() > 0
    text = TextTower(width=32, layers=1, heads=2, embed_dim=16)
    model = FaceCLIP.from_components(loaded, text, text, fusion={"layers": 1, "attention_width": 32}).eval()
    model.save_pretrained(tmp_path / "model")
    again = FaceCLIP.from_pretrained(tmp_path / "model")
    assert isinstance(again.face_encoder, FaceResNet) and module_hash(again.face_encoder) == module_hash(loaded)


@pytest.mark.parametrize("mask", [True, False])
def test_transformers_of_other_widths_and_depths_are_read(tmp_path, mask):
    torch.manual_seed(0)
    network = FaceViT(width=16, depth=3, heads=8, patch_size=28, embedding_dim=8, mlp_ratio=2.0).eval()
    state = {name: value for name, value in network.state_dict().items() if mask or name != "mask_token"}
    torch.save(state, tmp_path / "vit.pt")
    loaded = load_tower(f"arcface:{tmp_path / 'vit.pt'}", "face")
    images = torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(loaded(images).identity, network(images).identity)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("layer2.0.bn1.weight"), "layer2"),
        (lambda state: state.update({"fc.weight": torch.zeros(12, 41)}), "fc.weight"),
        (lambda state: [state.pop(name) for name in list(state) if name.startswith("layer1.")], "patch_embed"),
        (lambda state: [state.pop(name) for name in list(state) if name.startswith("layer2.")], "layer2"),
    ],
)
def test_damaged_files_are_named(file, change, named):
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=rf"(?s)backbone.*{named}"):
        load_tower(f"arcface:{file}", "face")
