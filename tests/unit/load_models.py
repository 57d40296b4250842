"""Loads models in a process of its own and prints what happened, one JSON line per model.

The hub's address, cache and offline switch are read from the environment when the library is
imported, so they cannot be changed within a test process.
"""

import json
import logging
import sys
from io import StringIO
from unittest.mock import patch

from data_contracts.profiles import ModelProfile
from sdrpn_core.calibration.draft import draft_profile
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter


def main(profiles: str) -> None:
    for plain in json.loads(profiles):
        logged = StringIO()
        handler = logging.StreamHandler(logged)
        logging.getLogger("sdrpn_core").addHandler(handler)
        profile = ModelProfile.model_validate(plain)
        try:
            adapter = load_adapter(profile, device="cpu")
            outcome: dict[str, str | None] = {"revision": adapter.profile.revision}
        except ModelError as error:
            outcome = {"error": str(error)}
        outcome |= {"draft": draft_error(profile)}
        logging.getLogger("sdrpn_core").removeHandler(handler)
        print(json.dumps(outcome | {"log": logged.getvalue()}), flush=True)


def draft_error(profile: ModelProfile) -> str | None:
    """Why a calibration of the same model cannot start."""
    try:
        draft_profile(profile.model_id, revision=profile.revision)
    except ModelError as error:
        return str(error)
    return None


if __name__ == "__main__":
    # The hub's client waits 23 seconds between its tries of an address that nobody listens on.
    with patch("time.sleep"):
        main(sys.argv[1])
