"""The pipeline's way to faces: detector, fitter, identities, and what it remembers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ControlNetModel
from numpy.typing import ArrayLike

from faceclip.errors import ConfigError
from faceclip.face3d.mesh_fitter import default_mesh_fitter
from faceclip.faces import FaceDetector, MTCNNDetector
from faceclip.faces.dense import is_installed
from makeup_plugin.calls.identify import identity_of_photos
from makeup_plugin.calls.pictures import readable
from makeup_plugin.identities import Identity
from makeup_plugin.known_faces import KnownFaces
from makeup_plugin.references import Images
from makeup_plugin.turns import Turns, change_in_turn


class FaceSideMixin:
    """For a pipeline with `known_faces`."""

    known_faces: KnownFaces
    face_fitter: Any
    shading_channel: ControlNetModel | None
    config: Any
    _turns: Turns
    _detector: FaceDetector | None = None
    _fitter: Any = None

    @property
    def detector(self) -> FaceDetector:
        """The face detector. Unless you set another one, the pipeline creates an `MTCNNDetector` on first use."""
        if self._detector is None:
            self._detector = MTCNNDetector()
        return self._detector

    @detector.setter
    def detector(self, value: FaceDetector | None) -> None:
        self._detector = value
        self.known_faces.forget("face")

    @property
    def fitter(self) -> Any:
        """What fits the head model to faces: what you set, else `face_fitter`, else, for shading maps and
        where the extra `photos` is installed, a `MeshFitter`; None where there is nothing.

        The shipped `face_fitter` learned renders. Set "mesh" for photographs; None takes that choice back.
        """
        if self._fitter is not None:
            return self._fitter
        if self.face_fitter is not None:
            return self.face_fitter
        drawn = self.shading_channel is not None and self.config.control_map != "five_points"
        return default_mesh_fitter() if drawn and is_installed() else None

    @fitter.setter
    def fitter(self, value: Any) -> None:
        if isinstance(value, str) and value != "mesh":
            raise ConfigError(f'fitter={value!r}: "mesh", a fitter, or None for the face_fitter is expected')
        self._fitter = default_mesh_fitter() if isinstance(value, str) else value
        self.known_faces.forget("fit")

    @torch.no_grad()
    @change_in_turn
    def encode_identity(
        self,
        images: Images,
        weights: Sequence[float] | None = None,
        *,
        landmarks: Sequence[ArrayLike | None] | ArrayLike | None = None,
        face_policy: str = "largest",
    ) -> Identity:
        """One person from one photo or several, as a value: to draw many pictures, to keep in a file, to mix.

        A warning names photos that seem to show another person (`Identity.photos` has a report on each).

        Args:
            images: one photo or a list of them, as for a call's `image`.
            weights: how much each photo counts. By default all count the same.
            landmarks, face_policy: as for a call.

        Raises:
            ConfigError: no photo, or weights that do not fit.
            FaceError: a photo that gives no face; the message names it.
        """
        pipeline: Any = self
        images = readable("images", images)
        return identity_of_photos(pipeline, images, weights=weights, landmarks=landmarks, policy=face_policy)

    @change_in_turn
    def forget_faces(self) -> None:
        """Drop what is remembered of faces: detections, crops, features and fits of the last pictures.

        Right results need this only after a detector was changed in place, or a network's weights through `.data`, as
        by its own `to` with a dtype and back, or by that of another pipeline that shares it.
        """
        self.known_faces.forget()
