"""Mutations that change nothing that a test could see, each with its reason."""

ANY = ""  # in place of the mutated line: all mutations of a line
# (module, line, mutated line), without indentation → why no test can tell the two apart. These are never drawn.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "faceclip.training.sampler",
        "self._epoch, self._order = -1, np.empty(0, dtype=np.int64)",
        "self._epoch, self._order = -2, np.empty(0, dtype=np.int64)",
    ): "any negative number stands for no epoch",
    (
        "faceclip.training.accumulation",
        "devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []",
        "devices = torch.cuda.get_rng_state_all() if (not (torch.cuda.is_available())) else []",
    ): "without a CUDA device both are the empty list",
    (
        "faceclip.face3d.shading",
        "grey = bool((channels[:, :1] == channels).all())",
        "grey = bool((channels[:, :1] != channels).all())",
    ): "never true, since a channel equals itself: grey light is shaded in three channels, with the same pixels",
    (
        "faceclip.face3d.shading",
        "if left >= right or top >= bottom:",
        "if left > right or top >= bottom:",
    ): "an empty window has no pixels to fill",
    (
        "faceclip.face3d.shading",
        "if left >= right or top >= bottom:",
        "if left >= right or top > bottom:",
    ): "an empty window has no pixels to fill",
    (
        "faceclip.faces.align",
        "return CROP_SIZE / max(float(np.hypot(*matrix[:, 0])), 1e-9)",
        "return CROP_SIZE / max(float(np.hypot(*matrix[:, 1])), 1e-9)",
    ): "both columns of a similarity have the same length",
    (
        "faceclip.face3d.rasterizer",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope > 0.0 else -1",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope >= 0.0 else -1",
    ): "flat edges have returned before",
    (
        "train_generator.terms.alignment",
        'height, width = (-(-size // factor) for size in batch["latents"].shape[-2:])',
        'height, width = (-(-size // factor) for size in batch["latents"].shape[2:])',
    ): "latents have four axes",
    (
        "eval.arms.scores",
        "frechet=frechet_distance(sight.features, references.features),",
        "frechet=frechet_distance(references.features, sight.features),",
    ): "the distance is symmetric",
    (
        "faceclip.training.accumulation",
        "devices = state[1 + len(generators) :]",
        "devices = state[1 - len(generators) :]",
    ): "without a CUDA device, states for devices are noted and never used",
    (
        "faceclip.training.accumulation",
        "devices = state[1 + len(generators) :]",
        "devices = state[2 + len(generators) :]",
    ): "without a CUDA device there are no further states",
    (
        "faceclip.training.checkpoints",
        "step = torch.tensor([-1 if folder is None else step_of(folder)], device=device)",
        "step = torch.tensor([-2 if folder is None else step_of(folder)], device=device)",
    ): "any negative number stands for no checkpoint",
    (
        "faceclip.training.trainer",
        "task.modules.to(self.device)",
        "pass",
    ): "without an accelerator everything is on the CPU from the start",
    (
        "faceclip.training.trainer",
        "stack.enter_context(policy(self.config, self.device))",
        "pass",
    ): "the policy is about products on CUDA",
    (
        "faceclip.statistics",
        "return np.where(excluded, -np.inf, scores), relevant & ~excluded",
        "return np.where(excluded, np.inf, scores), relevant & ~excluded",
    ): "both figures leave out whatever is not finite",
    (
        "faceclip.retrieval.labels",
        "turn = np.abs(np.asarray(arrays.pose)[:, :2]).sum(axis=1)",
        "turn = np.abs(np.asarray(arrays.pose)[:, :2]).mean(axis=1)",
    ): "the order of means is that of sums",
    (
        "makeup_plugin.sampling",
        "if len(scheduler.timesteps) > 1 and scheduler.timesteps[0] < scheduler.timesteps[-1]:",
        "if len(scheduler.timesteps) > 1 and scheduler.timesteps[0] < scheduler.timesteps[1]:",
    ): "the timesteps of a schedule go one way",
    (
        "makeup_plugin.sampling",
        "if len(scheduler.timesteps) > 1 and scheduler.timesteps[0] < scheduler.timesteps[-1]:",
        "if len(scheduler.timesteps) >= 1 and scheduler.timesteps[0] < scheduler.timesteps[-1]:",
    ): "a single timestep is not less than itself",
    (
        "faceclip.statistics",
        "rows = max(1, DRAWS_AT_ONCE // people)",
        "rows = max(2, DRAWS_AT_ONCE // people)",
    ): "the number of draws at a time changes memory alone",
    (
        "faceclip.statistics",
        "rows = max(1, DRAWS_AT_ONCE // people)",
        "rows = max(1, DRAWS_AT_ONCE * people)",
    ): "the number of draws at a time changes memory alone",
    (
        "faceclip.statistics",
        "rows = max(1, DRAWS_AT_ONCE // len(sums))",
        "rows = max(2, DRAWS_AT_ONCE // len(sums))",
    ): "the number of draws at a time changes memory alone",
    (
        "faceclip.statistics",
        "rows = max(1, DRAWS_AT_ONCE // len(sums))",
        "rows = max(1, DRAWS_AT_ONCE * len(sums))",
    ): "the number of draws at a time changes memory alone",
    (
        "makeup_plugin.marking.watermark",
        "level = min(max(level, low + 1), high - 1)",
        "level = min(max(level, low - 1), high - 1)",
    ): "the search tries other levels and finds the same one",
    (
        "makeup_plugin.marking.watermark",
        "level = min(max(level, low + 1), high - 1)",
        "level = min(max(level, low + 2), high - 1)",
    ): "the search tries other levels and finds the same one",
    (
        "makeup_plugin.marking.watermark",
        "level = _expected_level(image, values, scale, grid, corrections) if tries < 6 else (low + high) // 2",
        "level = _expected_level(image, values, scale, grid, corrections) if tries <= 6 else (low + high) // 2",
    ): "the search tries other levels and finds the same one",
    (
        "makeup_plugin.marking.watermark",
        "level = _expected_level(image, values, scale, grid, corrections) if tries < 6 else (low + high) // 2",
        "level = _expected_level(image, values, scale, grid, corrections) if tries < 7 else (low + high) // 2",
    ): "the search tries other levels and finds the same one",
    (
        "eval.arms.scores",
        "agreed=agreement(sight.landmarks, faces.landmarks, faces.widths),",
        "agreed=agreement(faces.landmarks, sight.landmarks, faces.widths),",
    ): "the distance is symmetric",
    (
        "eval.arms.scores",
        "errors = angle_difference(sight.pose, np.asarray(arrays.pose)[rows])",
        "errors = angle_difference(np.asarray(arrays.pose)[rows], sight.pose)",
    ): "the distance is symmetric",
    (
        "faceclip.training.sampler",
        "self._epoch, self._order = -1, np.empty((0, batch_size), dtype=np.int64)",
        "self._epoch, self._order = -1, np.empty((1, batch_size), dtype=np.int64)",
    ): "nothing is read before the first epoch is drawn, and any negative number stands for no epoch",
    (
        "faceclip.training.sampler",
        "self._epoch, self._order = -1, np.empty((0, batch_size), dtype=np.int64)",
        "self._epoch, self._order = -2, np.empty((0, batch_size), dtype=np.int64)",
    ): "nothing is read before the first epoch is drawn, and any negative number stands for no epoch",
    (
        "faceclip.training.sampler",
        "self._epoch, self._order = -1, np.empty(0, dtype=np.int64)",
        "self._epoch, self._order = -1, np.empty(1, dtype=np.int64)",
    ): "nothing is read before the first epoch is drawn",
    (
        "train_generator.terms.identity",
        "return sample.prediction.sum() * 0.0",
        "return sample.prediction.mean() * 0.0",
    ): "both are zero, with a gradient of zeros",
    (
        "faceclip.face3d.rasterizer",
        "if abs(slope) <= 1e-3:",
        "if (slope) <= 1e-3:",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.face3d.rasterizer",
        "if abs(slope) <= 1e-3:",
        "if abs(slope) < 1e-3:",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.face3d.rasterizer",
        "if abs(slope) <= 1e-3:",
        "if abs(slope) <= 0.002:",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.face3d.rasterizer",
        "return 0.0, 0.0, 0",
        "return 1.0, 0.0, 0",
    ): "the place of a flat edge is not read",
    (
        "faceclip.face3d.rasterizer",
        "return 0.0, 0.0, 0",
        "return 0.0, 1.0, 0",
    ): "the place of a flat edge is not read",
    (
        "faceclip.face3d.rasterizer",
        "place = min(max(gradient * y + start, x0 - 2.0), x1 + 2.0)",
        "place = min(max(gradient * y + start, x0 - 4.0), x1 + 2.0)",
    ): "what lies beyond the box does not narrow it",
    (
        "faceclip.face3d.rasterizer",
        "place = min(max(gradient * y + start, x0 - 2.0), x1 + 2.0)",
        "place = min(max(gradient * y + start, x0 - 2.0), x1 + 4.0)",
    ): "what lies beyond the box does not narrow it",
    (
        "faceclip.face3d.rasterizer",
        "return max(first, int(np.floor(place)) - 1), last",
        "return max(first, int(np.ceil(place)) - 1), last",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.face3d.rasterizer",
        "return max(first, int(np.floor(place)) - 1), last",
        "return max(first, int(np.floor(place)) - 2), last",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.face3d.rasterizer",
        "return first, min(last, int(np.ceil(place)) + 1)",
        "return first, min(last, int(np.floor(place)) + 1)",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.face3d.rasterizer",
        "return first, min(last, int(np.ceil(place)) + 1)",
        "return first, min(last, int(np.ceil(place)) + 2)",
    ): "more pixels are tested and the same ones drawn",
    (
        "faceclip.faces.align",
        "if finer > 1:",
        "if finer >= 1:",
    ): "once the size is the same map again",
    (
        "faceclip.statistics",
        "DRAWS_AT_ONCE = 1 << 24  # people drawn at a time by the bootstrap, so that many people need little memory",
        ANY,
    ): "the number of draws at a time changes memory alone",
    (
        "eval.metrics.distances",
        "ROWS = 1024  # of a kernel matrix computed at a time",
        ANY,
    ): "sums of other parts are the same",
    (
        "faceclip.losses",
        'BLOCK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 24}',
        ANY,
    ): "the size of blocks changes memory and time alone",
    (
        "train_generator.terms.denoising",
        "return noise_prediction_loss(sample.prediction, target, weights)",
        "return noise_prediction_loss(target, sample.prediction, weights)",
    ): "the square of a difference is symmetric",
    (
        "faceclip.face3d.rasterizer",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope > 0.0 else -1",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 2 if slope > 0.0 else -1",
    ): "only the sign of the side is read",
    (
        "faceclip.face3d.rasterizer",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope > 0.0 else -1",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope > 0.0 else -2",
    ): "only the sign of the side is read",
    (
        "eval.retrieval.spaces",
        "both = concatenate(face, image)",
        "both = concatenate(image, face)",
    ): "halves of equal weight give the same inner products in either order",
    (
        "makeup_plugin.marking.watermark",
        "enough = _expected_change(image, values, push, grid) * corrections[0] > _LEAST_CHANGE",
        "enough = _expected_change(image, values, push, grid) * corrections[0] >= _LEAST_CHANGE",
    ): "no picture meets the bound exactly",
    (
        "makeup_plugin.marking.watermark",
        "enough = enough and _statistic(_pushed(values, push, grid)) * corrections[1] > _TARGET",
        "enough = enough and _statistic(_pushed(values, push, grid)) * corrections[1] >= _TARGET",
    ): "no picture meets the bound exactly",
    (
        "makeup_plugin.marking.watermark",
        "low, high = (low, level) if change > _LEAST_CHANGE and z > _TARGET else (level, high)",
        "low, high = (low, level) if change >= _LEAST_CHANGE and z > _TARGET else (level, high)",
    ): "no picture meets the bound exactly",
    (
        "makeup_plugin.marking.watermark",
        "low, high = (low, level) if change > _LEAST_CHANGE and z > _TARGET else (level, high)",
        "low, high = (low, level) if change > _LEAST_CHANGE and z >= _TARGET else (level, high)",
    ): "no picture meets the bound exactly",
    (
        "faceclip.training.accumulation",
        "if devices:",
        "if (not (devices)):",
    ): "without a CUDA device there are no states to set",
    (
        "faceclip.face3d.rasterizer",
        "slope = (py - qy) * side",
        "slope = (py - qy) / side",
    ): "the side is 1 or -1",
    (
        "faceclip.face3d.rasterizer",
        "gradient = (wide[0] - wide[2]) * side / slope",
        "gradient = (wide[0] - wide[2]) / side / slope",
    ): "the side is 1 or -1",
    (
        "faceclip.face3d.rasterizer",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) * side / slope, 1 if slope > 0.0 else -1",
        "return gradient, (wide[1] * wide[2] - wide[0] * wide[3]) / side / slope, 1 if slope > 0.0 else -1",
    ): "the side is 1 or -1",
    (
        "faceclip.face3d.rasterizer",
        "if pa * side < 0.0 or pb * side < 0.0:  # outside, as most of the box is: not worth a division",
        "if pa / side < 0.0 or pb * side < 0.0:  # outside, as most of the box is: not worth a division",
    ): "the side is 1 or -1",
    (
        "faceclip.face3d.rasterizer",
        "if pa * side < 0.0 or pb * side < 0.0:  # outside, as most of the box is: not worth a division",
        "if pa * side < 0.0 or pb / side < 0.0:  # outside, as most of the box is: not worth a division",
    ): "the side is 1 or -1",
    (
        "faceclip.training.trainer",
        'self.accelerator = start(cpu=config.device == "cpu", timeout=timedelta(minutes=config.timeout_minutes))',
        'self.accelerator = start(cpu=config.device != "cpu", timeout=timedelta(minutes=config.timeout_minutes))',
    ): "without an accelerator every run is on the CPU",
    ("makeup_plugin.losses", "dim=1,", "dim=0,"): "all errors are summed, whatever axis the attributes are",
}
