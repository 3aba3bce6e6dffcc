"""The identity channel in a MODEL of ComfyUI equals the channel in our own UNet."""

import os
import threading

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.comfy.patching import Place, comfy_places, encode_prompt, identity_tokens
from makeup_plugin.identity import IdentityChannel, cross_attention_layers

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
# The blocks of the first releases that have cross-attention, with their numbers of transformers.
GOLDEN = {
    "sdxl": {
        ("input", 4): 2,
        ("input", 5): 2,
        ("input", 7): 10,
        ("input", 8): 10,
        ("middle", 0): 10,
        **{("output", block): 10 for block in (0, 1, 2)},
        **{("output", block): 2 for block in (3, 4, 5)},
    },
    "sd15": {
        **{("input", block): 1 for block in (1, 2, 4, 5, 7, 8)},
        ("middle", 0): 1,
        **{("output", block): 1 for block in range(3, 12)},
    },
}
SIGMAS = {0.0: 999999999.9, 0.25: 8.0, 0.75: 2.0, 1.0: 0.0}


class Schedule:
    """Noise levels at shares of the schedule."""

    def percent_to_sigma(self, percent):
        return SIGMAS[percent]


def network(places, widths, context):
    """The part of ComfyUI's UNet that is asked for: blocks with transformers in these places."""
    found = nn.Module()
    size = {part: 1 + max(place.block for place in places if place.part == part) for part in ("input", "output")}
    found.input_blocks = nn.ModuleList(nn.ModuleList() for _ in range(size["input"]))
    found.output_blocks = nn.ModuleList(nn.ModuleList() for _ in range(size["output"]))
    found.middle_block = nn.ModuleList()
    for place, width in sorted(zip(places, widths, strict=True)):
        block = found.middle_block if place.part == "middle" else getattr(found, f"{place.part}_blocks")[place.block]
        if not len(block):
            block.append(nn.Module())
            block[0].transformer_blocks = nn.ModuleList()
        transformer = nn.Module()
        transformer.attn2 = nn.Module()
        transformer.attn2.to_k = nn.Linear(context, width, bias=False, device="meta")
        block[0].transformer_blocks.append(transformer)
    return found


@pytest.fixture
def places(pipeline):
    return comfy_places(pipeline.identity_channel, pipeline.unet.config.layers_per_block)


@pytest.fixture
def model(nodes, pipeline, places):
    """A MODEL of the pipeline's base."""
    from comfy.model_patcher import ModelPatcher

    config = pipeline.identity_channel.config
    model = nn.Module()
    model.diffusion_model = network(places, config.layer_widths, config.cross_attention_dim)
    model.model_sampling = Schedule()
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"), size=1)


@pytest.fixture
def identity(pipeline, photo, points):
    return pipeline.encode_identity([photo], landmarks=[points])


def apply(nodes, **given):
    wish = {"identity_scale": 0.7, "start": 0.0, "end": 1.0} | given
    return nodes["FaceMakeUpApply"].execute(**wish).result[0]


def patches(model):
    return model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})


def run(patch, layer, states, text, *, kinds=(1, 0), sigma=5.0):
    """One cross-attention layer as ComfyUI runs it with a patch."""
    options = {"n_heads": layer.heads, "cond_or_uncond": list(kinds), "sigmas": torch.full((len(states),), sigma)}
    return layer.to_out[0](patch(layer.to_q(states), layer.to_k(text), layer.to_v(text), options))


def layers(pipeline, places):
    """Place, cross-attention layer, and random inputs: states and text of two unconditional and two conditional
    rows."""
    modules = dict(pipeline.unet.named_modules())
    generator = torch.Generator().manual_seed(5)
    width = pipeline.unet.config.cross_attention_dim
    text = torch.randn(4, 7, width, generator=generator)
    for place, name in zip(places, pipeline.identity_channel.config.layer_names, strict=True):
        layer = modules[name.removesuffix(".processor")]
        yield place, layer, torch.randn(4, 9, layer.inner_dim, generator=generator), text


@pytest.mark.parametrize(("name", "settings"), [("sdxl", SDXL), ("sd15", SD15)])
def test_layers_of_the_published_bases_have_comfyuis_names(name, settings):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
        found = cross_attention_layers(unet)
        channel = IdentityChannel(
            layer_names=list(found),
            layer_widths=list(found.values()),
            cross_attention_dim=settings["cross_attention_dim"],
            identity_dim=8,
            form="mlp",
        )
    expected = {Place(*block, index) for block, count in GOLDEN[name].items() for index in range(count)}
    places = comfy_places(channel, unet.config.layers_per_block)
    assert len(places) == len(expected) and set(places) == expected
    named = dict(zip(found, places, strict=True))
    if name == "sdxl":
        assert named["down_blocks.2.attentions.1.transformer_blocks.9.attn2.processor"] == ("input", 8, 9)
        assert named["up_blocks.1.attentions.2.transformer_blocks.1.attn2.processor"] == ("output", 5, 1)
        assert named["mid_block.attentions.0.transformer_blocks.4.attn2.processor"] == ("middle", 0, 4)


@torch.no_grad()
def test_every_layer_gives_what_our_own_attention_gives(nodes, pipeline, model, identity, places):
    patched = apply(nodes, model=model, pipeline=pipeline, identity=identity)
    assert not patches(model) and set(patches(patched)) == set(places)
    nobody, person = identity_tokens(pipeline, identity).split(1)
    assert (nobody - person).abs().max() > 0.01
    tokens = torch.cat([nobody, nobody, person, person])
    pipeline.identity_channel.scale = 0.7
    for place, layer, states, text in layers(pipeline, places):
        ours = layer(states, encoder_hidden_states=(text, [tokens]))
        assert (ours - layer(states, encoder_hidden_states=text)).abs().max() > 1e-3
        torch.testing.assert_close(run(patches(patched)[place], layer, states, text), ours, atol=1e-5, rtol=0)
        # Rows that come in the other order, and conditional rows alone.
        turned = run(patches(patched)[place], layer, states.flip(0), text.flip(0), kinds=(0, 1))
        torch.testing.assert_close(turned.flip(0), ours, atol=1e-5, rtol=0)
        alone = run(patches(patched)[place], layer, states[2:], text[2:], kinds=(0,))
        torch.testing.assert_close(alone, ours[2:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_are_those_that_the_pipelines_unet_reads(nodes, pipeline, identity):
    seen = []
    hook = pipeline.identity_channel.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pipeline("a man", identity=identity, num_inference_steps=1, guidance_scale=3.0, shading_scale=0.0)
    hook.remove()
    torch.testing.assert_close(identity_tokens(pipeline, identity), seen[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_identity_counts_within_its_window_of_noise_levels(nodes, pipeline, model, identity, places):
    patched = apply(nodes, model=model, pipeline=pipeline, identity=identity, start=0.25, end=0.75)
    place, layer, states, text = next(layers(pipeline, places))
    plain = layer(states, encoder_hidden_states=text)
    changes = {
        sigma: float((run(patches(patched)[place], layer, states, text, sigma=sigma) - plain).abs().max())
        for sigma in (14.0, 8.0, 5.0, 2.0, 0.5)
    }
    assert [change > 1e-3 for change in changes.values()] == [False, True, True, True, False]
    assert changes[14.0] < 1e-5 and changes[0.5] < 1e-5


@torch.no_grad()
def test_the_whole_schedule_needs_no_look_at_the_noise_level(nodes, pipeline, model, identity, places):
    """The level lies on the device, and a look at it would wait for all steps before."""
    place, layer, states, text = next(layers(pipeline, places))
    options = {"n_heads": layer.heads, "cond_or_uncond": [1, 0], "sigmas": torch.ones(4, device="meta")}
    inputs = layer.to_q(states), layer.to_k(text), layer.to_v(text)
    patched = apply(nodes, model=model, pipeline=pipeline, identity=identity)
    found = patches(patched)[place](*inputs, options)
    torch.testing.assert_close(layer.to_out[0](found), run(patches(patched)[place], layer, states, text))
    partly = apply(nodes, model=model, pipeline=pipeline, identity=identity, start=0.25)
    with pytest.raises(RuntimeError, match="meta"):
        patches(partly)[place](*inputs, options)


@torch.no_grad()
def test_the_shortcut_of_the_call_before_does_not_stay(pipeline, identity):
    wanted = identity_tokens(pipeline, identity)
    assert pipeline.identity_channel.has_shortcut
    pipeline("a man", identity=identity, num_inference_steps=1, shortcut_scale=0.3)
    assert torch.equal(identity_tokens(pipeline, identity), wanted)


def test_tokens_wait_until_a_call_has_ended(pipeline, identity):
    """In another thread they wait, and in the call's own callback they are refused."""
    events, threads = [], []

    def encode():
        encode_prompt(pipeline, "a man", identity)
        identity_tokens(pipeline, identity)
        events.append("tokens")

    def within(pipe, step, timestep, tensors):
        threads.append(threading.Thread(target=encode))
        threads[-1].start()
        threads[-1].join(0.5)
        for wish in (lambda: encode_prompt(pipe, "a man", identity), lambda: identity_tokens(pipe, identity)):
            with pytest.raises(ConfigError, match="call"):
                wish()
        events.append("step")
        return {}

    pipeline("a man", identity=identity, num_inference_steps=1, callback_on_step_end=within)
    threads[0].join(60)
    assert events == ["step", "tokens"]


@torch.no_grad()
def test_two_people_add_up_in_one_model(nodes, pipeline, model, identity, places):
    once = apply(nodes, model=model, pipeline=pipeline, identity=identity, identity_scale=0.3)
    twice = apply(nodes, model=once, pipeline=pipeline, identity=identity, identity_scale=0.4)
    whole = apply(nodes, model=model, pipeline=pipeline, identity=identity, identity_scale=0.7)
    for place, layer, states, text in layers(pipeline, places):
        found, expected = (run(patches(one)[place], layer, states, text) for one in (twice, whole))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_models_of_another_base_are_rejected(nodes, pipeline, model, identity, places):
    wish = {"pipeline": pipeline, "identity": identity}
    other = model.clone()
    widths = [2 * width for width in pipeline.identity_channel.config.layer_widths]
    other.model.diffusion_model = network(places, widths, pipeline.unet.config.cross_attention_dim)
    with pytest.raises(CheckpointError, match="input 1, transformer 0"):
        apply(nodes, model=other, **wish)
    other.model.diffusion_model = network([*places, Place("input", 6, 0)], [*widths, 8], 48)
    with pytest.raises(CheckpointError, match="model"):
        apply(nodes, model=other, **wish)
    other.model.diffusion_model = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match="Linear"):
        apply(nodes, model=other, **wish)


def test_a_lora_that_stays_behind_is_told(nodes, pipeline, model, identity, caplog):
    wish = {"model": model, "pipeline": pipeline, "identity": identity}
    apply(nodes, **wish)
    assert "LoRA" in caplog.text
    caplog.clear()
    pipeline.unet.delete_adapters(pipeline.unet.active_adapters())
    apply(nodes, **wish)
    assert "LoRA" not in caplog.text


def test_impossible_wishes_name_the_argument(nodes, pipeline, model, identity):
    wish = {"model": model, "pipeline": pipeline, "identity": identity}
    with pytest.raises(ConfigError, match=r"start=0\.75"):
        apply(nodes, **wish, start=0.75, end=0.25)
    with pytest.raises(ConfigError, match="identity must be"):
        apply(nodes, **wish | {"identity": "anna"})
    patch = next(iter(patches(apply(nodes, **wish)).values()))
    q, text = torch.zeros(3, 2, 16), torch.zeros(3, 1, 16)
    with pytest.raises(ConfigError, match="cond_or_uncond"):
        patch(q, text, text, {"n_heads": 2, "cond_or_uncond": [0, 1], "sigmas": torch.ones(3)})
    with pytest.raises(ConfigError, match="sigmas"):
        patch(q, text, text, {"n_heads": 2, "cond_or_uncond": [0]})
    pipeline.register_modules(identity_channel=None)
    with pytest.raises(ConfigError, match="identity_channel"):
        apply(nodes, **wish)


@torch.no_grad()
def test_a_prompt_is_encoded_with_and_without_the_person(nodes, pipeline, identity):
    node = nodes["FaceMakeUpEncodePrompt"]
    ((tokens, extra),) = node.execute(pipeline, "a man", identity).result[0]
    expected = pipeline.joint_encoder.encode(["a man"], face_features=identity.features)
    torch.testing.assert_close(tokens, expected.tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(extra["pooled_output"], expected.pooled, atol=1e-6, rtol=0)
    ((without, _),) = encode_prompt(pipeline, "a man", None)
    torch.testing.assert_close(without, pipeline.joint_encoder.encode(["a man"]).tokens, atol=1e-6, rtol=0)
    assert (without - tokens).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.skipif("COMFYUI" not in os.environ, reason="needs a checkout of ComfyUI, named by COMFYUI")
def test_comfyuis_own_unet_predicts_what_the_pipelines_unet_predicts(
    nodes, unet_factory, channel_factory, pipeline, identity
):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_patcher import ModelPatcher
    from comfy.utils import unet_to_diffusers

    # ComfyUI's normalization always has 32 groups, and its time embedding the width of the first level.
    unet = unet_factory(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=(2, 4))
    pipeline.register_modules(unet=unet, identity_channel=channel_factory(unet), shading_channel=None)
    pipeline.identity_channel.attach(unet)
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": (1, 2),
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": unet.config.cross_attention_dim,
        "num_classes": "sequential",
        "adm_in_channels": unet.config.projection_class_embeddings_input_dim,
        "use_linear_in_transformer": True,
        "use_spatial_transformer": True,
        "num_head_channels": 16,
    }
    network = UNetModel(image_size=8, **settings)
    weights = unet.state_dict()
    names = unet_to_diffusers(settings)
    network.load_state_dict({theirs: weights[ours] for ours, theirs in names.items() if ours in weights})

    model = nn.Module()
    model.diffusion_model, model.model_sampling = network.eval(), Schedule()
    cpu = torch.device("cpu")
    patched = apply(nodes, model=ModelPatcher(model, cpu, cpu, size=1), pipeline=pipeline, identity=identity)

    generator = torch.Generator().manual_seed(6)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 7, 48)))
    pooled, sizes = torch.randn(2, 24, generator=generator), torch.full((2, 6), 64.0)
    steps = torch.tensor([500, 500])
    options = patched.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(2)}
    adm = torch.cat([pooled, unet.add_time_proj(sizes.flatten()).reshape(2, -1)], dim=1)
    found = network(latents, steps, context=text, y=adm, transformer_options=options)
    plain = network(latents, steps, context=text, y=adm, transformer_options={})

    pipeline.identity_channel.scale = 0.7
    context = (text, [identity_tokens(pipeline, identity)])
    added = {"text_embeds": pooled, "time_ids": sizes}
    ours = unet(latents, steps, encoder_hidden_states=context, added_cond_kwargs=added).sample
    assert (found - plain).abs().max() > 1e-3
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=0)
