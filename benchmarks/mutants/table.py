"""Which modules are mutated, and which tests must notice."""

from pathlib import Path

# Modules that hold arithmetic, seeds, hashes or order, by import path, with the tests that mirror them.
MODULES: dict[str, tuple[str, ...]] = {
    "faceclip.losses": ("tests/faceclip/test_losses.py",),
    "faceclip.fusion": ("tests/faceclip/test_fusion.py",),
    "faceclip.heads": ("tests/faceclip/test_heads.py", "tests/faceclip/test_encoder.py"),
    "faceclip.towers.face": ("tests/faceclip/towers/test_towers.py", "tests/faceclip/published/test_checkpoint.py"),
    "faceclip.training.accumulation": ("tests/faceclip/training/test_accumulation.py",),
    "faceclip.faces.align": ("tests/faceclip/faces/test_align.py", "tests/faceclip/faces/test_upright.py"),
    "faceclip.face3d.camera": ("tests/faceclip/face3d/test_camera.py",),
    "faceclip.face3d.light": ("tests/faceclip/face3d/test_light.py", "tests/faceclip/face3d/test_shading.py"),
    "faceclip.face3d.shading": ("tests/faceclip/face3d/test_shading.py",),
    "faceclip.face3d.rasterizer": ("tests/faceclip/face3d/test_rasterizer.py",),
    "faceclip.training.checkpoints": ("tests/faceclip/training/test_checkpoints.py",),
    "faceclip.training.continuation": ("tests/faceclip/training/test_continuation.py",),
    "faceclip.training.sampler": ("tests/faceclip/training/test_sampler.py",),
    "faceclip.training.ema": ("tests/faceclip/training/test_ema.py",),
    "faceclip.training.optimization": ("tests/faceclip/training/test_optimization.py",),
    "faceclip.training.trainer": (
        "tests/faceclip/training/test_trainer_step.py",
        "tests/faceclip/training/test_trainer.py",
        "tests/faceclip/training/test_validation.py",
        "tests/faceclip/training/test_resume.py",
        "tests/faceclip/training/test_display.py",
        "tests/faceclip/training/test_watch.py",
        "tests/faceclip/training/test_trackers.py",
    ),
    "faceclip.data.mapping": ("tests/faceclip/data/test_mapping.py", "tests/faceclip/data/test_sources.py"),
    "faceclip.storage.shards": ("tests/faceclip/storage/test_shards.py",),
    "faceclip.storage.folders": ("tests/faceclip/training/test_checkpoints.py",),
    "faceclip.storage.hashes": ("tests/faceclip/storage/test_hashes.py",),
    "faceclip.people.render": ("tests/faceclip/people/test_render.py",),
    "faceclip.people.sample": ("tests/faceclip/people/test_sample.py",),
    "makeup_plugin.conditioning": (
        "tests/makeup_plugin/test_conditioning.py",
        "tests/makeup_plugin/test_losses.py",
        "tests/makeup_plugin/test_channels.py",
        "tests/makeup_plugin/test_regional_attention.py",
    ),
    "makeup_plugin.diffusion": ("tests/makeup_plugin/test_diffusion.py",),
    "makeup_plugin.losses": ("tests/makeup_plugin/test_losses.py",),
    "makeup_plugin.callbacks": ("tests/makeup_plugin/test_callbacks.py",),
    "train_generator.terms.alignment": ("tests/train_generator/terms/test_alignment.py",),
    "train_generator.terms.denoising": ("tests/train_generator/terms/test_denoising.py",),
    "train_generator.terms.identity": ("tests/train_generator/terms/test_identity.py",),
    "makeup_plugin.sampling": ("tests/makeup_plugin/test_sampling.py",),
    "makeup_plugin.saving.adapters": (
        "tests/makeup_plugin/saving/test_adapters.py",
        "tests/makeup_plugin/saving/test_whole_unet.py",
        "tests/makeup_plugin/saving/test_loras.py",
    ),
    "makeup_plugin.references": (
        "tests/makeup_plugin/test_references.py",
        "tests/makeup_plugin/test_identities.py",
    ),
    "makeup_plugin.marking.provenance": ("tests/makeup_plugin/marking/test_provenance.py",),
    "makeup_plugin.marking.watermark": (
        "tests/makeup_plugin/marking/test_watermark.py",
        "tests/makeup_plugin/marking/test_provenance.py",
    ),
    "faceclip.statistics": ("tests/faceclip/test_statistics.py",),
    "eval.metrics.distances": ("tests/eval/metrics/test_distances.py",),
    "faceclip.retrieval.labels": (
        "tests/faceclip/retrieval/test_labels.py",
        "tests/faceclip/retrieval/test_queries.py",
    ),
    "faceclip.retrieval.queries": ("tests/faceclip/retrieval/test_queries.py",),
    "eval.retrieval.search": ("tests/eval/retrieval/test_search.py",),
    "eval.retrieval.spaces": ("tests/eval/retrieval/test_spaces.py",),
    "eval.arms.scores": ("tests/eval/arms/test_scores.py",),
}

# Tests of these files that start other processes or take seconds, left out of every run.
DESELECTED = (
    "tests/faceclip/test_losses.py::test_two_ranks_equal_one",
    "tests/faceclip/test_losses.py::test_memory_for_backward_is_linear",
    "tests/faceclip/test_losses.py::test_a_large_batch_equals_dense",
    "tests/faceclip/training/test_trainer.py::test_a_second_interrupt_stops_at_once",
    "tests/faceclip/training/test_trainer.py::test_resume_after_sigkill_is_bit_exact",
    "tests/faceclip/published/test_checkpoint.py::test_full_size_file",
    "tests/faceclip/retrieval/test_queries.py::test_queries_are_found_at_a_linear_cost_and_are_those_of_the_definition",
    "tests/faceclip/published/test_checkpoint.py::test_every_published_key_has_its_place_at_full_size",
)

# Modules whose bounds of continuous numbers, such as `z > 0.7`, are met exactly by no pixel and no draw. Nobody can see
# there to which side a bound belongs, so that is never drawn.
BOUNDS = ("faceclip.people.render", "faceclip.people.sample")


def source_file(module: str, root: Path) -> Path:
    """The file of an import path below `root`. Raises FileNotFoundError, which names this table, when it has moved."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{module}: no such module below {root}; update MODULES in {Path(__file__).name}")
