"""Load registered models and ask them: ``python -I try_models.py job.json result.json``, in a process of its own.

It imports nothing of the project, so that each model runs on the code that was packed with it. ``job.json`` maps a label to
the model's ``uri`` and the ``rows`` to ask; ``result.json`` maps it to ``rows``, or to ``trouble``: one line, without what
was asked, for others read it. The traceback goes to stderr.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import pyfunc

LENGTH = 200  # characters of an error that are passed on


def try_model(uri: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    """What the model says to ``rows``, or its trouble."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mor"]:
        del sys.modules[name]  # the model before brought its own
    try:
        model = pyfunc.load_model(uri)
    except Exception as error:  # whatever keeps it from loading keeps it from serving
        traceback.print_exc()
        line = next(iter(str(error).splitlines()), "")
        return {"trouble": f"loading ended in {type(error).__name__}: {line[:LENGTH]}"}
    try:
        return {"rows": model.predict(pd.DataFrame(rows)).to_dict("records")}
    except Exception as error:  # its text may quote the question
        traceback.print_exc()
        return {"trouble": f"asking ended in {type(error).__name__}"}


if __name__ == "__main__":
    job, result = map(Path, sys.argv[1:])
    result.write_text(json.dumps({label: try_model(**given) for label, given in json.loads(job.read_text()).items()}))
