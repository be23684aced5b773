"""The embedded server lives exactly as long as somebody uses it, and says clearly when it cannot."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore.errors import ConfigurationError, StoreUnavailable
from featurestore.online.connection import connect
from featurestore.online.server import EmbeddedServer, running
from validation.redaction import redacted_url


class Address:
    def __init__(self, url: str) -> None:
        self.url = url


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_values_survive_a_restart(tmp_path: Path) -> None:
    """What was written is read back after the server was stopped and started again."""
    with EmbeddedServer(tmp_path) as server:
        connect(Address(f"unix://{server.address}"), tmp_path).set(b"k", b"v")
    assert running(tmp_path) is None
    with EmbeddedServer(tmp_path) as server:
        assert connect(Address(f"unix://{server.address}"), tmp_path).get(b"k") == b"v"


def test_it_is_private_and_never_evicts(tmp_path: Path) -> None:
    """No port is open, the folder is the user's alone, and memory pressure never drops a value."""
    with EmbeddedServer(tmp_path) as server:
        client = connect(Address(f"unix://{server.address}"), tmp_path)
        config = client.config_get("*")
        assert (config["port"], config["maxmemory-policy"]) == ("0", "noeviction")
        assert (config["appendonly"], config["appendfsync"]) == ("yes", "everysec")
        assert server.address.parent.stat().st_mode & 0o777 == 0o700


def test_starting_twice_joins_and_the_last_one_out_stops_it(tmp_path: Path) -> None:
    """A second start joins the live server; it stays up until both have stopped."""
    first, second = EmbeddedServer(tmp_path).start(), EmbeddedServer(tmp_path).start()
    pid = first.pid
    assert second.pid == pid
    first.stop()
    assert running(tmp_path) is not None
    second.stop()
    assert running(tmp_path) is None
    assert not alive(pid)


def test_another_process_finds_it_and_may_outlive_its_starter(tmp_path: Path) -> None:
    """A process that joined keeps the server alive after the starter has stopped, and stops it at its own end."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom featurestore.online.connection import connect\n"
        "class A: url = 'embedded'\n"
        f"client = connect(A, Path({str(tmp_path)!r}))\n"
        "client.set('seen', 1)\nprint('ready', flush=True)\nsys.stdin.read()\nprint(client.get('seen'))"
    )
    server = EmbeddedServer(tmp_path).start()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        server.stop()
        assert running(tmp_path) is not None
        out, _ = other.communicate("")
    assert out == "b'1'\n"
    assert running(tmp_path) is None


def test_processes_that_start_it_at_once_share_one(tmp_path: Path) -> None:
    """However they interleave, one server is started and all reach it; the last one out stops it."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom featurestore.online.server import EmbeddedServer\n"
        f"start, folder = float(sys.argv[1]), Path({str(tmp_path)!r})\ntime.sleep(max(0, start - time.time()))\n"
        "server = EmbeddedServer(folder).start()\nprint(server.pid, flush=True)\nsys.stdin.read()\nserver.stop()"
    )
    command = [sys.executable, "-c", code, str(time.time() + 2)]
    users = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    pids = {int(user.stdout.readline()) for user in users if user.stdout}
    for user in users:
        user.communicate("")
    assert len(pids) == 1
    assert [user.returncode for user in users] == [0] * len(users)
    assert running(tmp_path) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_users_that_are_killed_leave_no_server_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Where the last user ends without a word the watchdog stops the server; while one is left, it does not."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom featurestore.online.server import EmbeddedServer\n"
        f"server = EmbeddedServer(Path({str(tmp_path)!r})).start()\nprint(server.pid, flush=True)\nsys.stdin.read()"
    )
    users = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    pids = {int(user.stdout.readline()) for user in users if user.stdout}
    assert len(pids) == 1
    users[0].send_signal(number)
    users[0].communicate()
    time.sleep(0.2)
    assert running(tmp_path) is not None
    users[1].send_signal(number)
    users[1].communicate()
    deadline = time.monotonic() + 10
    while running(tmp_path) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(tmp_path) is None
    with EmbeddedServer(tmp_path) as again:
        assert again.pid not in pids


def test_a_killed_server_is_noticed_and_started_again(tmp_path: Path) -> None:
    """After kill -9 the stale address counts for nothing, and start brings the written values back."""
    with EmbeddedServer(tmp_path) as server:
        client = connect(Address(f"unix://{server.address}"), tmp_path)
        client.set(b"k", b"v")
        time.sleep(1.2)  # appendfsync everysec
        os.kill(server.pid, signal.SIGKILL)
        while running(tmp_path) is not None:
            time.sleep(0.01)
        with pytest.raises(StoreUnavailable, match=r"does not answer.*featurestore doctor"):
            client.get(b"k")
        server.start()
        assert client.get(b"k") == b"v"


def test_an_address_without_a_server_is_no_server(tmp_path: Path) -> None:
    """A recorded address whose server is gone is reported as nothing running."""
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "address").write_text(f"{tmp_path / 'redis' / 'redis.sock'}\n")
    assert running(tmp_path) is None
    with pytest.raises(StoreUnavailable, match="no embedded online store is alive"):
        connect(Address("embedded"), tmp_path, start=False)


def test_a_long_path_falls_back_to_a_short_private_socket(tmp_path: Path) -> None:
    """A data folder too deep for a socket path still works; its short folder is private and goes at the end."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with EmbeddedServer(deep) as server:
        address = server.address
        assert len(os.fsencode(address)) <= 100
        assert address.parent.stat().st_mode & 0o777 == 0o700
        assert running(deep) == address
    assert not address.parent.exists()


def test_a_damaged_append_only_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Bytes overwritten in the middle of the file stop the start, with what to do."""
    with EmbeddedServer(tmp_path) as server:
        client = connect(Address(f"unix://{server.address}"), tmp_path)
        for i in range(100):
            client.set(f"key{i}", "x" * 50)
    [log] = (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof")
    data = bytearray(log.read_bytes())
    data[2000:2100] = b"?" * 100
    log.write_bytes(data)
    with pytest.raises(StoreUnavailable, match=r"append-only file is damaged.*materialize again"):
        EmbeddedServer(tmp_path, patience_s=10).start()
    assert running(tmp_path) is None


def test_a_file_cut_short_loads_up_to_its_last_whole_write(tmp_path: Path) -> None:
    """A torn tail, as a power cut leaves it, loses the torn write only."""
    with EmbeddedServer(tmp_path) as server:
        client = connect(Address(f"unix://{server.address}"), tmp_path)
        client.set("whole", "1")
        client.set("torn", "x" * 500)
    [log] = (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes()[:-100])
    with EmbeddedServer(tmp_path) as server:
        client = connect(Address(f"unix://{server.address}"), tmp_path)
        assert (client.get("whole"), client.get("torn")) == (b"1", None)


def test_an_unwritable_data_folder_is_a_configuration_error(tmp_path: Path) -> None:
    """A data folder that is a file is named, with what to change."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="data_dir"):
        EmbeddedServer(tmp_path / "file").start()


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "redis://h:port"])
def test_a_wrong_url_is_refused(url: str, tmp_path: Path) -> None:
    """An address that is no Redis URL is a configuration error that shows it."""
    with pytest.raises(ConfigurationError, match="online_store connection"):
        connect(Address(url), tmp_path)


def test_messages_never_show_the_password(tmp_path: Path) -> None:
    """The store that is away is named by its URL without the password."""
    with pytest.raises(StoreUnavailable) as caught:
        connect(Address("redis://app:s3cret@127.0.0.1:1/0"), tmp_path).get("k")
    assert "s3cret" not in str(caught.value)
    assert "redis://app:***@127.0.0.1:1/0" in str(caught.value)
    assert redacted_url("unix:///tmp/x.sock") == "unix:///tmp/x.sock"
    assert redacted_url("unix://app@/x.sock?db=1&password=s3cret") == "unix://app@/x.sock?db=1&password=***"


def test_an_acl_user_connects_and_a_wrong_password_is_a_configuration_error(tmp_path: Path) -> None:
    """User and password of the URL are used; a refusal says what to check, not what was sent."""
    with EmbeddedServer(tmp_path) as server:
        admin = connect(Address(f"unix://{server.address}"), tmp_path)
        admin.execute_command("ACL", "SETUSER", "app", "on", ">s3cret", "~fs:*", "+@all")
        app = connect(Address(f"unix://app@{server.address}?password=s3cret"), tmp_path)
        assert app.set("fs:x", "1")
        assert app.execute_command("ACL", "WHOAMI") == b"app"
        stranger = connect(Address(f"unix://app@{server.address}?password=wr0ng"), tmp_path)
        with pytest.raises(ConfigurationError, match="refused the user or password") as caught:
            stranger.get("fs:x")
        assert "wr0ng" not in str(caught.value)
