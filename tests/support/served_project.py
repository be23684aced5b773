"""The small project of the API's own tests, for tests elsewhere: plan, rows, application, and a server of it."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_PATH = Path(__file__).parents[1] / "featurestore" / "api" / "conftest.py"
_spec = spec_from_file_location("served_project_source", _PATH)
assert _spec is not None
assert _spec.loader is not None
_source = module_from_spec(_spec)
_spec.loader.exec_module(_source)

NOW_US, PROJECT = _source.NOW_US, _source.PROJECT
land, make_app, make_plan, serve = _source.land, _source.make_app, _source.make_plan, _source.serve
GOOD = {"features": ["weather:temp_f"], "entities": {"origin": ["EWR"]}}
