"""The release's SDXL UNet: names with and without prefixes, its size, and its use with FaceCLIP's tokens."""

import re

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.__main__ import main
from faceclip.published.checkpoint import load_unet
from faceclip.published.unet import SDXL

TINY = {
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "norm_num_groups": 8,
    "cross_attention_dim": 80,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 48 + 6 * 8,
}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY).eval()


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "model.", "module.unet."])
def test_loads_with_and_without_prefix(unet, tmp_path, prefix):
    torch.save({prefix + name: tensor for name, tensor in unet.state_dict().items()}, tmp_path / "unet.pt")
    found = load_unet(tmp_path / "unet.pt", config=TINY)
    assert not found.training
    generator = torch.Generator().manual_seed(1)
    latents, tokens = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 80, generator=generator)
    added = {"text_embeds": torch.randn(2, 48, generator=generator), "time_ids": torch.ones(2, 6)}
    first, second = (u(latents, 5, tokens, added_cond_kwargs=added).sample for u in (unet, found))
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)


def test_dtype_is_kept_or_changed_and_the_command_converts(unet, tmp_path, monkeypatch, capsys):
    torch.save({name: tensor.to(torch.bfloat16) for name, tensor in unet.state_dict().items()}, tmp_path / "unet.pt")
    assert load_unet(tmp_path / "unet.pt", config=TINY).dtype == torch.bfloat16
    assert load_unet(tmp_path / "unet.pt", config=TINY, dtype=torch.float32).dtype == torch.float32
    monkeypatch.setattr("faceclip.published.unet.SDXL", TINY)
    assert main(["convert-unet", str(tmp_path / "unet.pt"), str(tmp_path / "ours")]) == 0
    assert "CC-BY-NC-4.0" in capsys.readouterr().out
    again = load_unet(tmp_path / "ours")
    assert all(torch.equal(t.to(torch.bfloat16), again.state_dict()[n]) for n, t in unet.state_dict().items())
    assert {p.dtype for p in load_unet(tmp_path / "ours", dtype=torch.float32).parameters()} == {torch.float32}


def test_directories_in_shards(unet, tmp_path):
    """Every tensor keeps its own precision; a lost shard is an error, not a layer with random weights."""
    mixed = UNet2DConditionModel(**TINY)
    mixed.load_state_dict(unet.state_dict())
    mixed.to(torch.float16).conv_out.float()
    expected = {name: tensor.clone() for name, tensor in mixed.state_dict().items()}
    mixed.save_pretrained(tmp_path, max_shard_size="50KB")
    mixed.half().save_pretrained(tmp_path, variant="fp16")
    found = load_unet(tmp_path).state_dict()
    assert {name for name, t in found.items() if t.dtype == torch.float32} == {"conv_out.weight", "conv_out.bias"}
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"\d+ missing: "):
        load_unet(tmp_path)


def test_bad_files(unet, tmp_path):
    state = unet.state_dict()
    torch.save(
        {name: tensor for name, tensor in state.items() if name != "conv_out.bias"} | {"x": torch.zeros(1)},
        tmp_path / "bad.pt",
    )
    with pytest.raises(CheckpointError, match=r"bad\.pt.*1 missing: conv_out\.bias; 1 unexpected: x"):
        load_unet(tmp_path / "bad.pt", config=TINY)
    torch.save(state, tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match=r"SDXL.*misshapen: add_embedding"):
        load_unet(tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match=r"/nowhere\.pt "):
        load_unet(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} .*config\.json"):
        load_unet(tmp_path)
    torch.save(state | {"conv_in.weight": state["conv_in.weight"].to(torch.int8)}, tmp_path / "int.pt")
    with pytest.raises(CheckpointError, match=r"1 mistyped: conv_in\.weight is torch\.int8") as caught:
        load_unet(tmp_path / "int.pt", config=TINY)
    assert caught.value.mistyped == ("conv_in.weight",)


@pytest.mark.parametrize("config", [{"colour": 3}, TINY | {"attention_head_dim": 0}, TINY | {"norm_num_groups": 5}, 3])
def test_settings_that_cannot_be(unet, tmp_path, config):
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    with pytest.raises(ConfigError, match=r"^config .*UNet2DConditionModel: "):
        load_unet(tmp_path / "unet.pt", config=config)


def test_converting_notices_damage_inside_a_tensor(unet, tmp_path, monkeypatch, capsys):
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    data = bytearray((tmp_path / "unet.pt").read_bytes())
    data[data.find(unet.conv_out.weight.detach().numpy().tobytes()) + 100] ^= 1
    (tmp_path / "unet.pt").write_bytes(data)
    load_unet(tmp_path / "unet.pt", config=TINY)  # cannot notice it
    monkeypatch.setattr("faceclip.published.unet.SDXL", TINY)
    for source in (tmp_path / "unet.pt", tmp_path):  # the file, and a copy of the repository
        assert main(["convert-unet", str(source), str(tmp_path / "ours")]) == 2
        assert re.search(r"unet\.pt is damaged, .*: download it again", capsys.readouterr().err)
    assert not (tmp_path / "ours").exists()


@pytest.mark.slow
def test_full_size(tmp_path):
    """All 1,680 tensors and 2,567,463,684 parameters of SDXL's UNet; each tensor of the file stores one number."""
    with init_empty_weights():
        shapes = {name: tensor.shape for name, tensor in UNet2DConditionModel(**SDXL).state_dict().items()}
    assert len(shapes) == 1680
    assert shapes["mid_block.attentions.0.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
    torch.save({name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()}, tmp_path / "unet.pt")
    found = load_unet(tmp_path / "unet.pt")
    assert sum(p.numel() for p in found.parameters()) == 2_567_463_684
    assert found.config.addition_embed_type == "text_time"
    with torch.device("meta"):
        sample = found.to("meta")(
            torch.empty(1, 4, 144, 108),
            torch.empty(()),
            torch.empty(1, 77, 2048),
            added_cond_kwargs={"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)},
        ).sample
    assert sample.shape == (1, 4, 144, 108)
