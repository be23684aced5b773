"""Values and keys of views tagged `pii` stay out of everything that describes them; what holds them is private."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from monitored import STAMP, deployment, keep, plan, rides

from featurestore.cli.main import main
from featurestore.clock import system_clock
from featurestore.doctor import examine
from featurestore.monitor.alerts import AlertBook
from featurestore.monitor.workspace import workspace
from featurestore.personal import holds_personal, masked_contracts
from featurestore.plan import Function, OnDemandView, Plan, Projection
from featurestore.private_files import open_to_others
from featurestore.write_profiles import WriteProfiles
from validation.contract import Column, Contract
from validation.profile.store import ProfileStore

NOW_US = 1_717_243_200_000_000
MARK = 31337.5
"""A value that occurs nowhere else."""


def held_by(folder: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    """The files below a folder that hold the marker, but those that hold the data itself."""
    wanted = [str(MARK).encode(), str(MARK).removesuffix(".5").encode()]
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and not set(but) & set(path.parts) and any(each in path.read_bytes() for each in wanted)
    ]


def computed(view: Plan) -> Plan:
    """The plan with an on-demand view over its view."""
    made = OnDemandView(
        name="faster", features=(), request=(), inputs=(Projection(view="rides", features=("speed",)),), mode="python",
        singleton=False, function=Function(name="f", source=""),
    )  # fmt: skip
    return msgspec.structs.replace(view, on_demand={"faster": made})


@pytest.mark.parametrize("tag", ["true", "no"])
def test_a_monitors_round(
    tag: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A served value that nothing explains is told without it and its key: in alerts, history, logs and messages."""
    now_us = system_clock()()
    made = plan(rides(pii=tag))
    settings = deployment(tmp_path, made, now_us)
    keep(settings, made, now_us - 60_000_000, MARK, now_us - 60_000_000)
    assert main(["monitor", "--once", "--repo", str(settings.repo)]) == 1
    main(["alerts", "--repo", str(settings.repo)])
    main(["skew", "history", "--repo", str(settings.repo)])
    told = caplog.text + "".join(capfd.readouterr())
    assert "differ from offline" in told
    found = held_by(tmp_path, but=("served",))
    alerts = AlertBook(workspace(settings).alerts, system_clock()).open()
    example = next(alert.finding.detail for alert in alerts if "differ" in alert.finding.title)
    if tag == "no":  # the search finds what is there
        assert found
        assert str(MARK) in told
    else:
        assert found == []
        assert "31337" not in told
        assert "'driver': '***'" in example


@pytest.mark.parametrize("tag", ["true", "no"])
def test_a_profile_of_written_rows(tag: str, tmp_path: Path) -> None:
    """Rows of a tagged view leave no profile and no baseline; those of others do, so the search can find something."""
    view = rides(pii=tag)
    profiles = WriteProfiles(ProfileStore(tmp_path), lambda: NOW_US, writer="w")
    table = pa.table({"driver": [1] * 10, "speed": [MARK] * 10, "ts": pa.array([NOW_US] * 10, STAMP)})
    profiles.written(plan(view), view, table)
    profiles.finish()
    assert bool([path for path in tmp_path.rglob("*") if path.is_file()]) == (tag == "no")


def test_contracts_about_personal_data_mask_every_column() -> None:
    """Also a column that the contract does not classify, and also where a service or computed view reads the view."""
    made = computed(plan(rides(pii="yes")))
    contract = lambda source: Contract(  # noqa: E731
        name=source, version="1", source=source, columns=(Column(name="speed", logical_type="number"),), rules=()
    )
    about = {source: contract(source) for source in ("rides", "view:rides", "view:faster", "service:eta", "other")}
    found = masked_contracts(about, made.views, made.services, made)
    assert {name: each.columns[0].masked for name, each in found.items()} == {
        "rides": True, "view:rides": True, "view:faster": True, "service:eta": True, "other": False,
    }  # fmt: skip


def test_what_is_computed_from_personal_data_is_personal() -> None:
    """A tag that says no is none."""
    assert holds_personal(computed(plan(rides(pii="yes"))), "faster")
    assert not holds_personal(computed(plan(rides(pii="no"))), "faster")


def test_what_a_process_writes_is_its_owners_alone(tmp_path: Path) -> None:
    """Commands run under a umask that children inherit; `doctor` names what an earlier version left open."""
    code = (
        "import subprocess, sys; from featurestore.cli.main import main; main(['--help']); "
        "open('made', 'w'); subprocess.run(['touch', 'by-child']); import os; os.mkdir('folder')"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, env={**os.environ}
    )
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("made", "by-child", "folder")}
    assert modes == {"made": 0o600, "by-child": 0o600, "folder": 0o700}
    (tmp_path / "feature_store.yaml").write_text("project: p\nregistry: data/registry.db\n")
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "old").touch(mode=0o600)
    (tmp_path / "data" / "old").chmod(0o644)
    assert open_to_others(tmp_path / "data") == [tmp_path / "data" / "old"]
    (check,) = [each for each in examine(tmp_path, {}) if each.name == "data folder's modes"]
    assert not check.ok
    assert re.search("chmod -R go= ", check.remedy)
