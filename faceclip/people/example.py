"""A portrait to try things with, where there is no photo at hand."""

from PIL import Image

from faceclip.errors import ConfigError
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene

SEED = 80_001  # of people whom nobody was trained on


def example_portrait(person: int = 0, *, picture: int = 0, size: int = 256) -> Image.Image:
    """Returns a rendered portrait (RGB, `size` px) of a synthetic person, framed by the head; the same for the same
    numbers.

    person: number of the person, from 0. picture: of this person; 0 looks into the camera.

    Raises ConfigError for negative numbers and for less than 32 px.
    """
    if person < 0 or picture < 0:
        raise ConfigError(f"person and picture are numbers from 0, got {person} and {picture}")
    if size < 32:
        raise ConfigError(f"size must be at least 32 px, got {size}")
    renderer, identity = PortraitRenderer(), sample_identity(SEED, person)
    scene = framed(identity, sample_scene(SEED, person, picture), "head", renderer.model)
    return Image.fromarray(renderer.render(identity, scene, size).image)
