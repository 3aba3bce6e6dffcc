"""Settings of commands: dataclasses whose fields carry their help text and resume policy, and the one command line.

This package imports only the standard library and PyYAML.
"""

from faceclip.settings.command import guarded, run
from faceclip.settings.config import from_dict, load_config, parse_config, to_dict
from faceclip.settings.fields import check_bounds, setting

__all__ = ["check_bounds", "from_dict", "guarded", "load_config", "parse_config", "run", "setting", "to_dict"]
