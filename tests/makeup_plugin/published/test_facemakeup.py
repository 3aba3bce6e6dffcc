"""The published Face-MakeUp checkpoint: every tensor finds its place in diffusers' classes."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel, UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from faceclip.errors import CheckpointError
from makeup_plugin.conditioning import predict
from makeup_plugin.identity import cross_attention_layers
from makeup_plugin.published.adapters import convert_state, empty_channel, load_facemakeup
from makeup_plugin.saving.adapters import ADAPTER_NAME

SHAPES = Path(__file__).parent / "data" / "facemakeup_state_dict.json"
SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


@pytest.fixture(scope="module")
def full_size():
    """SD1.5's UNet and the checkpoint's tensors, both without memory."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**SD15)
    shapes = json.loads(SHAPES.read_text())
    state = {
        root: {key: torch.empty(shape, device="meta") for key, shape in keys.items()} for root, keys in shapes.items()
    }
    return unet, state


def sizes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def test_every_published_tensor_has_its_place(full_size):
    unet, state = full_size
    assert [len(state[root]) for root in ("image_proj", "ip_adapter", "controlnet")] == [56, 288, 340]
    states = convert_state(state, unet)
    with init_empty_weights():
        channel = empty_channel(states, unet)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    assert sizes(states.projection) == sizes(channel.projection.state_dict())
    assert sizes(states.attention) == sizes(channel.attention.state_dict())
    assert sizes(states.controlnet) == sizes(control.state_dict())
    config = channel.config
    assert (config.identity_dim, config.image_dim, config.num_tokens) == (512, 1280, 4)
    assert (config.depth, config.heads) == (4, 12)
    assert len(cross_attention_layers(unet)) == 16


def test_lora_lands_on_every_attention_projection(full_size):
    unet, state = full_size
    lora = convert_state(state, unet).lora
    modules = dict(unet.named_modules())
    assert len(lora) == 32 * 4 * 2
    for key, value in lora.items():
        layer, _, rest = key.rpartition(".lora_")
        linear = modules[layer]
        wanted = (128, linear.in_features) if rest.startswith("A") else (linear.out_features, 128)
        assert tuple(value.shape) == wanted, key


@pytest.fixture
def small():
    """The same tree, eight times narrower, so that numbers can be compared."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, cross_attention_dim=64, attention_head_dim=2, block_out_channels=(32, 32, 64, 64)
    ).eval()
    names = list(unet.attn_processors)
    modules = dict(unet.named_modules())
    state = {"image_proj": {}, "ip_adapter": {}}
    width, rank = 64, 4
    projection = {"proj.0": (32, 16), "proj.2": (4 * width, 32), "norm": (width,)}
    for name, shape in projection.items():
        state["image_proj"][f"{name}.weight"] = torch.randn(shape) * 0.2
        state["image_proj"][f"{name}.bias"] = torch.randn(shape[0])
    resampler = {"proj_in": (width, 24), "proj_out": (width, width), "norm_out": (width,)}
    for name, shape in resampler.items():
        state["image_proj"][f"perceiver_resampler.{name}.weight"] = torch.randn(shape) * 0.2
        state["image_proj"][f"perceiver_resampler.{name}.bias"] = torch.randn(shape[0])
    for layer in range(2):
        prefix = f"perceiver_resampler.layers.{layer}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            state["image_proj"][f"{prefix}.{norm}.weight"] = torch.randn(width)
            state["image_proj"][f"{prefix}.{norm}.bias"] = torch.randn(width)
        linears = {"0.to_q": (width, width), "0.to_kv": (2 * width, width), "0.to_out": (width, width)}
        linears |= {"1.1": (4 * width, width), "1.3": (width, 4 * width)}
        for name, shape in linears.items():
            state["image_proj"][f"{prefix}.{name}.weight"] = torch.randn(shape) * 0.1
    for index, name in enumerate(names):
        attn = modules[name.removesuffix(".processor")]
        linears = {"to_q": attn.to_q, "to_k": attn.to_k, "to_v": attn.to_v, "to_out": attn.to_out[0]}
        for kind, linear in linears.items():
            down = torch.randn(rank, linear.in_features, dtype=torch.bfloat16) * 0.1
            up = torch.randn(linear.out_features, rank, dtype=torch.bfloat16) * 0.1
            state["ip_adapter"][f"{index}.{kind}_lora.down.weight"] = down
            state["ip_adapter"][f"{index}.{kind}_lora.up.weight"] = up
        if "attn2" in name:
            for kind in ("to_k_ip", "to_v_ip"):
                value = torch.randn(attn.inner_dim, width, dtype=torch.bfloat16)
                state["ip_adapter"][f"{index}.{kind}.weight"] = value
    state["controlnet"] = ControlNetModel.from_unet(unet).state_dict()
    return unet, state


def reference_projection(state, identity, image_tokens):
    """FaceID-Plus V2's projection written out from its paper's figure, on the published names."""
    import torch.nn.functional as F

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    tokens = linear(F.gelu(linear(identity, "proj.0")), "proj.2").view(len(identity), 4, -1)
    tokens = norm(tokens, "norm")
    latents, x = tokens, linear(image_tokens, "perceiver_resampler.proj_in")
    for layer in range(2):
        prefix = f"perceiver_resampler.layers.{layer}"
        a, b = norm(x, f"{prefix}.0.norm1"), norm(latents, f"{prefix}.0.norm2")
        k, v = linear(torch.cat([a, b], 1), f"{prefix}.0.to_kv").chunk(2, -1)
        q = linear(b, f"{prefix}.0.to_q")
        attended = (q @ k.transpose(1, 2) / 64**0.5).softmax(-1) @ v  # one head of 64
        latents = latents + linear(attended, f"{prefix}.0.to_out")
        hidden = F.gelu(linear(norm(latents, f"{prefix}.1.0"), f"{prefix}.1.1"))
        latents = latents + linear(hidden, f"{prefix}.1.3")
    resampled = norm(linear(latents, "perceiver_resampler.proj_out"), "perceiver_resampler.norm_out")
    return tokens + resampled


@torch.no_grad()
def test_projection_computes_what_was_published(small, tmp_path):
    unet, state = small
    torch.save(state, tmp_path / "makeup.bin")
    published = load_facemakeup(tmp_path / "makeup.bin", unet)
    identity, image_tokens = torch.randn(2, 16), torch.randn(2, 9, 24)
    wanted = reference_projection(state["image_proj"], identity, image_tokens)
    result = published.identity_channel(identity, image_tokens)
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_published_checkpoint_runs_on_its_unet(small, tmp_path, conditions, noisy):
    from dataclasses import replace

    unet, state = small
    torch.save(state, tmp_path / "makeup.bin")
    published = load_facemakeup(tmp_path / "makeup.bin", unet)
    batch = replace(
        conditions,
        tokens=torch.randn(3, 77, 64),
        image_tokens=torch.randn(3, 9, 24),
        shading=torch.rand(3, 3, 64, 64),
    )
    base = predict(unet, *noisy, batch)
    published.apply(unet)
    lora = get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME)
    down = lora["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"]
    assert torch.equal(down, state["ip_adapter"]["0.to_q_lora.down.weight"].float())
    parts = {"identity_channel": published.identity_channel, "shading_channel": published.shading_channel}
    result = predict(unet, *noisy, batch, **parts)
    assert torch.isfinite(result).all() and (result - base).abs().max() > 1e-3


def test_damaged_or_foreign_files_are_refused(small, tmp_path):
    unet, state = small
    path = tmp_path / "makeup.bin"
    with pytest.raises(CheckpointError, match=r"/makeup\.bin .*Face-MakeUp"):
        load_facemakeup(path, unet)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"/makeup\.bin .*weights_only|/makeup\.bin .*tensors"):
        load_facemakeup(path, unet)
    torch.save({"image_proj": Path("/")}, path)
    with pytest.raises(CheckpointError, match=r"/makeup\.bin .*weights_only|/makeup\.bin .*tensors"):
        load_facemakeup(path, unet)
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointError, match=r"/makeup\.bin: .*image_proj, ip_adapter, controlnet, .*\['weights'\]"):
        load_facemakeup(path, unet)
    missing = {**state, "controlnet": dict(list(state["controlnet"].items())[1:])}
    torch.save(missing, path)
    with pytest.raises(CheckpointError, match=r"^controlnet .*1 missing: conv_in\.weight"):
        load_facemakeup(path, unet)
    other = {**state["image_proj"], "norm.bias": torch.ones(3), "extra": torch.ones(1)}
    torch.save({**state, "image_proj": other}, path)
    with pytest.raises(CheckpointError, match=r"^image_proj .*extra; 1 misshapen: norm\.bias .*\(3,\).*\(64,\)"):
        load_facemakeup(path, unet)
    torch.save({**state, "image_proj": [1]}, path)
    with pytest.raises(CheckpointError, match=r"/makeup\.bin: image_proj "):
        load_facemakeup(path, unet)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} "):
        load_facemakeup(tmp_path, unet)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"/makeup\.bin .*zip archive"):
        load_facemakeup(path, unet)
    torch.save({**state, "ip_adapter": {**state["ip_adapter"], "99.to_k_ip.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=r"^ip_adapter\.99\.to_k_ip\.weight .*\b32 layers"):
        load_facemakeup(path, unet)


LORA = "0.to_q_lora.down.weight"
FAULTS = {
    "a scalar": ("image_proj", {"norm.weight": torch.ones(())}, r"image_proj: norm\.weight .*\(\)"),
    "nothing": ("image_proj", {"norm.weight": torch.ones(0)}, r"image_proj: norm\.weight .*\(0,\)"),
    "no name": ("image_proj", {7: torch.ones(1)}, r"image_proj\.7 "),
    "expanded": (
        "image_proj",
        {"proj.2.bias": torch.ones(1).expand(100_000, 100_000)},
        r"image_proj\.proj\.2\.bias",
    ),
    "meta": ("controlnet", {"conv_in.weight": torch.ones(2, device="meta")}, r"controlnet\.conv_in\.weight .*storage"),
    "sparse": ("controlnet", {"conv_in.weight": torch.ones(2, 2).to_sparse()}, r"controlnet\.conv_in\.weight .*sparse"),
    "a far layer": ("image_proj", {"perceiver_resampler.layers.20000.1.0.weight": torch.ones(64)}, r"layers\.20000"),
    "integers": ("ip_adapter", {LORA: torch.ones(4, 32, dtype=torch.int64)}, r"ip_adapter\.0\.to_q_lora.*int64"),
    "NaN": ("ip_adapter", {LORA: torch.full((4, 32), torch.nan)}, r"ip_adapter\.0\.to_q_lora\.down\.weight .*NaN"),
    "half a pair": ("ip_adapter", {"1.to_v_lora.up.weight": None}, r"attn2\.to_v\.lora_B\.weight is missing"),
    "two ranks": ("ip_adapter", {LORA: torch.ones(3, 32)}, r"one rank, found \[3, 4\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_no_weight_can_be_are_named_at_once(small, tmp_path, fault):
    unet, state = small
    root, changes, message = FAULTS[fault]
    tensors = {**state[root], **changes}
    path = tmp_path / "makeup.bin"
    torch.save({**state, root: {key: value for key, value in tensors.items() if value is not None}}, path)
    with pytest.raises(CheckpointError, match=message):
        load_facemakeup(path, unet)


def _equal(first, second):
    return all(
        torch.equal(value, getattr(second, part).state_dict()[key])
        for part in ("identity_channel", "shading_channel")
        for key, value in getattr(first, part).state_dict().items()
    )


def test_every_published_layout_is_read(small, tmp_path):
    unet, state = small
    torch.save(state, tmp_path / "makeup.bin")
    wanted = load_facemakeup(tmp_path / "makeup.bin", unet)
    flat = {f"{root}.{key}": value.clone() for root, tensors in state.items() for key, value in tensors.items()}
    save_file(flat, tmp_path / "makeup.safetensors")
    raw_roots = {"image_proj": "image_proj_model", "ip_adapter": "adapter_modules", "controlnet": "contorlnet"}
    raw = {f"{raw_roots[root]}.{key}": value for root, tensors in state.items() for key, value in tensors.items()}
    torch.save(raw | {"unet.conv_in.weight": unet.conv_in.weight}, tmp_path / "raw.bin")
    names = list(unet.attn_processors)
    once = {key: value.clone() for key, value in raw.items() if not key.startswith("adapter_modules.")}
    for key, value in state["ip_adapter"].items():
        index, _, rest = key.partition(".")
        once[f"unet.{names[int(index)]}.{rest}"] = value.clone()
    save_file(once, tmp_path / "raw.safetensors")
    for name in ("makeup.safetensors", "raw.bin", "raw.safetensors"):
        found = load_facemakeup(tmp_path / name, unet)
        assert _equal(wanted, found) and found.lora_settings == wanted.lora_settings, name
        assert all(torch.equal(value, found.lora[key]) for key, value in wanted.lora.items())
    save_file({"image_proj.x": torch.ones(1), "strange": torch.ones(1)}, tmp_path / "strange.safetensors")
    with pytest.raises(CheckpointError, match=r"/strange\.safetensors: strange "):
        load_facemakeup(tmp_path / "strange.safetensors", unet)
