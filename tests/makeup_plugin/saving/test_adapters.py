"""LoRA and adapters: added and removed without a trace, saved apart from the base, refused where they do not fit."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.conditioning import predict
from makeup_plugin.saving.adapters import (
    LoraSettings,
    add_lora,
    base_unet,
    check_there,
    load_adapter,
    lora_parameters,
    remove_lora,
    save_adapter,
    unload_adapter,
)
from makeup_plugin.shading import shading_channel_from_unet


class Bare(SimpleNamespace):
    """The attributes that an adapter touches, and the image encoder that it asks for."""

    image_encoder: object = "there"
    adapter_licence: str = ""
    whole_unet: bool = False

    def register_modules(self, **modules):
        self.__dict__.update(modules)


def train(parameters) -> None:
    """As if something had been learned."""
    torch.manual_seed(6)
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.2)


@torch.no_grad()
def test_lora_is_silent_at_first_and_gone_after_removal(unet, conditions, noisy):
    base = predict(unet, *noisy, conditions)
    parameters = add_lora(unet, LoraSettings(rank=3))
    assert torch.equal(predict(unet, *noisy, conditions), base)
    train(parameters)
    assert (predict(unet, *noisy, conditions) - base).abs().max() > 1e-3
    unet.set_adapters(["makeup"], [0.0])
    torch.testing.assert_close(predict(unet, *noisy, conditions), base)
    remove_lora(unet)
    assert torch.equal(predict(unet, *noisy, conditions), base)
    assert not any("lora" in key or "base_layer" in key for key in unet.state_dict())
    with pytest.raises(ConfigError, match=r"UNet .*'makeup'$"):
        remove_lora(unet)


def test_lora_sits_on_every_attention_and_alone_is_trained(unet):
    parameters = add_lora(unet, LoraSettings(rank=3))
    attentions = len(unet.attn_processors)
    assert len(parameters) == attentions * 4 * 2
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert all(min(p.shape) == 3 for p in parameters)
    with pytest.raises(ConfigError, match=r"UNet .*'makeup': .*remove_lora"):
        add_lora(unet, LoraSettings(rank=3))


def test_no_alpha_means_factor_one(unet):
    """Face-MakeUp's LoRA has no alpha: y = Wx + BAx."""
    add_lora(unet, LoraSettings(rank=3))
    train(lora_parameters(unet))
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q
    x = torch.randn(2, layer.in_features)
    a, b = layer.lora_A["makeup"].weight, layer.lora_B["makeup"].weight
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + x @ a.T @ b.T)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"^lora\.rank .* 0$"):
        LoraSettings(rank=0)


@torch.no_grad()
def test_base_unet_is_clean_and_shares_weights(unet, channel, conditions, noisy):
    base = predict(unet, *noisy, conditions)
    channel.attach(unet)
    train(add_lora(unet, LoraSettings(rank=3)))
    clean = base_unet(unet)
    assert torch.equal(predict(clean, *noisy, conditions), base)
    assert clean.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()


def test_parts_of_a_module_that_lie_elsewhere_are_noticed():
    here, elsewhere = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")
    check_there({"unet": here, "scheduler": object()})
    with pytest.raises(ConfigError, match=r"^unet .*remove_all_hooks"):
        check_there({"unet": torch.nn.Sequential(here, elsewhere)})


@pytest.fixture
def saved(unet, channel, tmp_path):
    """A trained adapter on disk, and the pipeline-like object that made it."""
    control = shading_channel_from_unet(unet, vae_scale_factor=4).eval()
    torch.nn.init.normal_(control.controlnet_mid_block.weight, std=0.3)
    channel.attach(unet)
    train(add_lora(unet, LoraSettings(rank=3)))
    directory = save_adapter(
        tmp_path / "adapter", unet=unet, identity_channel=channel, shading_channel=control, licence="Apache-2.0"
    )
    return Bare(unet=unet, identity_channel=channel, shading_channel=control), directory


@torch.no_grad()
def test_adapter_on_a_fresh_base_gives_the_same_output(saved, unet_factory, conditions, noisy):
    first, directory = saved

    def output(pipeline):
        return predict(
            pipeline.unet,
            *noisy,
            conditions,
            identity_channel=pipeline.identity_channel,
            shading_channel=pipeline.shading_channel,
        )

    wanted = output(first)
    fresh = Bare(unet=unet_factory(), identity_channel=None, shading_channel=None)
    base = predict(fresh.unet, *noisy, conditions)
    config = load_adapter(fresh, directory)
    assert config["licence"] == "Apache-2.0" and config["lora"]["rank"] == 3 and config["format"] == 1
    assert torch.equal(output(fresh), wanted)
    with pytest.raises(CheckpointError, match=rf"unload_adapter .*{directory}"):
        load_adapter(fresh, directory)
    unload_adapter(fresh)
    assert fresh.identity_channel is None and fresh.shading_channel is None
    assert torch.equal(predict(fresh.unet, *noisy, conditions), base)


def test_adapter_files_hold_nothing_of_the_base(saved):
    _, directory = saved
    from safetensors.torch import load_file

    assert {path.name for path in directory.iterdir()} == {
        "adapter.json",
        "lora.safetensors",
        "identity_channel",
        "shading_channel",
    }
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(directory / "lora.safetensors"))


def test_an_identity_channel_is_not_loaded_where_nothing_feeds_it(saved, unet_factory):
    _, directory = saved
    blind = Bare(unet=unet_factory(), image_encoder=None, identity_channel=None, shading_channel=None)
    with pytest.raises(ConfigError, match=r"/adapter .*image_encoder:"):
        load_adapter(blind, directory)
    assert not getattr(blind.unet, "peft_config", None) and blind.identity_channel is None


def test_another_base_is_refused_before_anything_changes(saved, unet_factory, conditions, noisy):
    _, directory = saved
    other = Bare(unet=unet_factory(layers_per_block=2), identity_channel=None, shading_channel=None)
    with pytest.raises(CheckpointError, match=r"/adapter\.json: .*layers_per_block=1, .*\b2;"):
        load_adapter(other, directory)
    assert not getattr(other.unet, "peft_config", None) and other.identity_channel is None


def test_damaged_adapters_are_named(saved, unet_factory):
    _, directory = saved
    fresh = Bare(unet=unet_factory(), identity_channel=None, shading_channel=None)
    weights = directory / "lora.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"/lora\.safetensors "):
        load_adapter(fresh, directory)
    weights.write_bytes(whole)
    channel = directory / "identity_channel" / "config.json"
    settings = channel.read_text()
    for damage in (lambda: channel.write_text("{}"), channel.unlink):
        damage()
        with pytest.raises(CheckpointError, match=r"/identity_channel .*(layer_names|config\.json)"):
            load_adapter(fresh, directory)
    channel.write_text(settings)
    config = json.loads((directory / "adapter.json").read_text())
    config["lora"]["rank"] = 5
    (directory / "adapter.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lora_A\.weight is \(3, "):
        load_adapter(fresh, directory)
    assert not getattr(fresh.unet, "peft_config", None)
    config["format"] = 99
    (directory / "adapter.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="format 99"):
        load_adapter(fresh, directory)
    config["format"] = 1
    for change, message in (
        ({"lora": 5}, "lora is 5"),
        ({"lora": {"rank": 3, "alpha": 3}}, "lora: target_modules is missing"),
        ({"base_fingerprint": None}, "base_fingerprint is None"),
        ({"shading_channel": "yes"}, "shading_channel is 'yes'"),
    ):
        (directory / "adapter.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=rf"adapter\.json: {message}"):
            load_adapter(fresh, directory)
    (directory / "adapter.json").write_text(
        json.dumps({name: value for name, value in config.items() if name != "lora"})
    )
    with pytest.raises(CheckpointError, match=r"adapter\.json: lora is missing"):
        load_adapter(fresh, directory)
    for damage, message in ((b"{", "not valid JSON"), (b'{"\xff": 1}', "not valid JSON"), (b"[1]", "holds a list")):
        (directory / "adapter.json").write_bytes(damage)
        with pytest.raises(CheckpointError, match=rf"adapter\.json .*{message}"):
            load_adapter(fresh, directory)
    (directory / "adapter.json").unlink()
    with pytest.raises(CheckpointError, match=r"/adapter\.json "):
        load_adapter(fresh, directory)


@torch.no_grad()
def test_alpha_over_rank_is_the_factor_also_after_loading(unet, unet_factory, conditions, noisy, tmp_path):
    train(add_lora(unet, LoraSettings(rank=2, alpha=7.0)))
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q
    x = torch.randn(2, layer.in_features)
    a, b = layer.lora_A["makeup"].weight, layer.lora_B["makeup"].weight
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + 3.5 * x @ a.T @ b.T)
    save_adapter(tmp_path, unet=unet, base_model="owner/base")
    fresh = Bare(unet=unet_factory(), identity_channel=None, shading_channel=None)
    config = load_adapter(fresh, tmp_path)
    assert config["lora"]["alpha"] == 7.0 and config["lora"]["rank"] == 2
    assert (config["base_model"], config["licence"]) == ("owner/base", "unknown") and fresh.adapter_licence == ""
    torch.testing.assert_close(predict(fresh.unet, *noisy, conditions), predict(unet, *noisy, conditions))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_channels", 9),
        ("block_out_channels", [16, 64]),
        ("layers_per_block", 2),
        ("down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"]),
        ("up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
        ("transformer_layers_per_block", [1, 2]),
        ("cross_attention_dim", 2048),
        ("addition_embed_type", None),
        ("projection_class_embeddings_input_dim", 2816),
    ],
)
def test_every_part_of_the_bases_form_is_compared(saved, unet_factory, field, value):
    _, directory = saved
    path = directory / "adapter.json"
    config = json.loads(path.read_text())
    assert len(config["base_fingerprint"]) == 9
    config["base_fingerprint"][field] = value
    path.write_text(json.dumps(config))
    fresh = Bare(unet=unet_factory(), identity_channel=None, shading_channel=None)
    with pytest.raises(CheckpointError, match=rf"adapter\.json.*\b{field}="):
        load_adapter(fresh, directory)
    assert not getattr(fresh.unet, "peft_config", None) and fresh.identity_channel is None


def test_a_loaded_adapter_is_frozen_in_the_bases_precision(saved, unet_factory):
    _, directory = saved
    fresh = Bare(unet=unet_factory().to(torch.bfloat16), identity_channel=None, shading_channel=None)
    load_adapter(fresh, directory)
    parameters = lora_parameters(fresh.unet)
    assert parameters and not any(parameter.requires_grad for parameter in parameters)
    kinds = {parameter.dtype for parameter in parameters}
    kinds |= {part.dtype for part in (fresh.identity_channel, fresh.shading_channel)}
    assert kinds == {torch.bfloat16} and fresh.adapter_licence == "Apache-2.0"
    assert fresh.identity_channel.is_attached(fresh.unet)


def test_lora_settings_choose_layers(unet):
    add_lora(unet, LoraSettings(rank=1, targets=("to_q", "to_out.0"), attentions=("attn2",)))
    names = {name.split(".lora_")[0] for name, _ in unet.named_parameters() if ".lora_" in name}
    count = sum("attn2" in name for name in unet.attn_processors)
    assert len(names) == 2 * count and all(name.endswith(("attn2.to_q", "attn2.to_out.0")) for name in names)
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        LoraSettings(targets=())
    with pytest.raises(ConfigError, match=r"lora\.attentions"):
        LoraSettings(attentions=())


def test_the_usual_lora_has_rank_16_and_factor_one_on_all_projections():
    settings = LoraSettings().build()
    assert (settings.r, settings.lora_alpha, settings.init_lora_weights) == (16, 16, True)
    pattern = re.compile(settings.target_modules)
    assert all(pattern.fullmatch(f"x.attn{n}.{p}") for n in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0"))
    assert not pattern.fullmatch("x.attn2.to_out_0") and not pattern.fullmatch("x.attn3.to_q")


def test_a_unet_with_a_hook_anywhere_takes_no_adapter(saved, unet_factory):
    _, directory = saved
    for hook in ("_hf_hook", "_diffusers_hook"):
        fresh = Bare(unet=unet_factory(), identity_channel=None, shading_channel=None)
        setattr(fresh.unet.conv_in, hook, object())
        with pytest.raises(ConfigError, match=rf"UNet .*{directory}"):
            load_adapter(fresh, directory)


def test_an_active_style_stays_active_and_nothing_becomes_trainable(saved, unet_factory):
    _, directory = saved
    fresh = Bare(unet=unet_factory().requires_grad_(False), identity_channel=None, shading_channel=None)
    for parameter in add_lora(fresh.unet, LoraSettings(rank=2), name="style"):
        parameter.requires_grad_(False)
    load_adapter(fresh, directory)
    assert set(fresh.unet.active_adapters()) == {"style", "makeup"}
    assert not any(parameter.requires_grad for parameter in fresh.unet.parameters())


def test_a_whole_unet_has_a_format_of_its_own_and_no_path_of_this_machine(unet, tmp_path):
    unet.register_to_config(_name_or_path="/home/somebody/base")
    directory = save_adapter(tmp_path / "adapter", unet=unet, base_model="/home/somebody/base", whole_unet=True)
    config = json.loads((directory / "adapter.json").read_text())
    assert (config["format"], config["unet"], config["lora"], config["base_model"]) == (2, "full", None, "base")
    assert json.loads((directory / "unet" / "config.json").read_text())["_name_or_path"] == "base"
