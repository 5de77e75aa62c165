"""cinesynth: from a folder of footage to a served, cinematic image-to-video model, on Ray."""

import os

__version__ = "0.1.0"

# Nothing that this package runs on reports home, unless its user says so (docs/security.md). The libraries read these
# when they are imported, in workers too, so they are set before any is.
for _name, _value in {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}.items():
    os.environ.setdefault(_name, _value)
