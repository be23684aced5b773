"""The flights repo is plain Feast, and means what it says."""

import ast
import contextlib
import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.config import load_settings
from featurestore.plan import Plan
from featurestore.user_code import run_on_demand

REPO = Path(__file__).parents[2] / "feature_repo"
HOUR_US = 3_600_000_000
STOCK = """
project: flights
provider: local
registry: ../data/registry.db
offline_store: {type: file}
online_store: {type: sqlite, path: ../data/online.db}
entity_key_serialization_version: 3
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flights") / "feature_repo"
    return Path(shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns("__pycache__")))


@contextlib.contextmanager
def quiet_feast() -> Iterator[None]:
    """Feast warns of stream views, on-demand views and of its own libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def plan(copy: Path) -> Plan:
    """The repo put in force, with an embedded online store of its own."""
    with quiet_feast():
        from featurestore.apply import apply
    from featurestore.online.server import EmbeddedServer

    settings = load_settings(copy, {})
    with EmbeddedServer(settings.data_dir), quiet_feast():
        return apply(settings).plan


def test_it_imports_feast_and_itself_only() -> None:
    """Definitions stay with their team, whatever engine runs them."""
    own = {path.stem for path in REPO.glob("*.py")}
    for path in REPO.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top == "feast" or top in own or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_stock_feast_applies_it(copy: Path, tmp_path: Path) -> None:
    """With Feast's own stores in feature_store.yaml, and none of the sources landed yet."""
    stock = Path(shutil.copytree(copy, tmp_path / "feature_repo"))
    (stock / "feature_store.yaml").write_text(STOCK)
    feast = Path(sys.executable).with_name("feast")
    told = subprocess.run([feast, "apply"], cwd=stock, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    for kind in ("stream feature view origin_departures", "on demand feature view trip", "feature view weather"):
        assert f"Created {kind}" in told.stdout
    assert "Created feature service departure_delay" in told.stdout


def test_the_plan_has_every_view(plan: Plan) -> None:
    """Facts by their latest row, punctuality over windows, the trip on demand."""
    kinds = {name: view.kind for name, view in plan.views.items()}
    assert kinds == {
        "weather": "latest", "plane_facts": "latest", "route_facts": "latest", "origin_departures": "windowed",
        "carrier_departures": "windowed", "tailnum_arrivals": "windowed", "carrier_arrivals": "windowed",
        "route_arrivals": "windowed",
    }  # fmt: skip
    assert set(plan.on_demand) == {"trip"}
    assert plan.views["weather"].ttl_us == 3 * HOUR_US
    assert sum(len(projection.features) for projection in plan.service("departure_delay").projections) == 78


def test_windows_and_hops_are_the_declared_ones(plan: Plan) -> None:
    """Counts, means and shares over 1 h, 6 h, 24 h and 7 d, whose tails move by 5 min and by 1 h."""
    for view in plan.views.values():
        if view.kind == "windowed":
            found = {(each.window_us, each.hop_us) for each in view.aggregations}
            minute, hour = HOUR_US // 60, HOUR_US
            assert found == {(hour, 5 * minute), (6 * hour, 5 * minute), (24 * hour, hour), (168 * hour, hour)}
            assert {each.feature for each in view.aggregations} == {field.name for field in view.features}


def test_views_of_the_message_key_are_keyed(plan: Plan) -> None:
    """departures are keyed by origin and arrivals by tailnum; what other keys ask for is spread over partitions."""
    keyed = {name for name, view in plan.views.items() if view.partitions == "keyed"}
    assert keyed == {"origin_departures", "tailnum_arrivals"}


def test_the_trip_is_arithmetic(plan: Plan) -> None:
    """Wind from the west against a flight to the west is headwind, the other way round it pushes; null stays null."""
    told = run_on_demand(
        plan.on_demand["trip"],
        {
            "sched_hour": [6, 18, 0, None],
            "planned_distance_mi": [1499.9, 1500.0, None, 200.0],
            "wind_speed_mph": [10.0, 10.0, None, 10.0],
            "wind_dir_deg": [270.0, 270.0, 90.0, None],
            "course_deg": [270.0, 90.0, 90.0, 90.0],
        },
    )
    assert told["headwind_mph"] == [pytest.approx(10), pytest.approx(-10), None, None]
    assert told["long_haul"] == [0, 1, None, 0]
    assert told["hour_sin"] == [pytest.approx(1), pytest.approx(-1), 0.0, None]
    assert told["hour_cos"] == [pytest.approx(math.cos(math.pi / 2)), pytest.approx(0), 1.0, None]
