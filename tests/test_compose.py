"""docker-compose.yml has the production shape: health checks, volumes, no default passwords, commands that exist."""

from pathlib import Path

import typer
import yaml

from featurestore.cli.main import build_app

TEXT = (Path(__file__).parents[1] / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]


def test_the_five_services_are_there():
    """Store, broker, one-shot apply, stream worker, API; all but the one-shot say whether they are healthy."""
    assert set(SERVICES) == {"redis", "kafka", "apply", "stream", "api"}
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"apply"}
    assert SERVICES["apply"]["restart"] == "no"


def test_no_password_has_a_default():
    """Secrets are files that must be there; none is in the environment, in a command, or has a value here."""
    compose = yaml.safe_load(TEXT)
    assert {secret["file"] for secret in compose["secrets"].values()} == {
        f"./secrets/{name}" for name in ("redis.conf", "redis_password", "signing_key", "api_keys")
    } | {f"./secrets/redis_url_{role}" for role in ("apply", "worker", "api")}
    assert ":-" not in TEXT
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not any(
                word in name for word in ("PASSWORD", "API_KEYS", "REDIS_URL", "SIGNING_KEY")
            ) or name.endswith("_FILE")
            assert not str(value).startswith("redis://")


def test_each_role_is_a_user_of_its_own_at_the_store():
    """apply, worker and API reach the store by addresses of their own, and all know the signing key."""
    mounted = {name: SERVICES[name]["secrets"] for name in ("apply", "stream", "api")}
    sources = [next(each["source"] for each in found if isinstance(each, dict)) for found in mounted.values()]
    assert sources == ["redis_url_apply", "redis_url_worker", "redis_url_api"]
    assert all("signing_key" in found for found in mounted.values())


def test_state_outlives_containers_and_each_role_has_its_own():
    """Redis, Kafka, registry, worker and API are on volumes of their own; the store never evicts."""
    used = {name: [volume.split(":")[0] for volume in service.get("volumes", [])] for name, service in SERVICES.items()}
    assert used == {
        "redis": ["redis"],
        "kafka": ["kafka"],
        "apply": ["registry"],
        "stream": ["stream", "violations"],
        "api": ["api", "violations"],
    }
    assert "noeviction" in SERVICES["redis"]["command"]


def test_every_container_is_hardened():
    """A read-only root, no capabilities, no new privileges, and limits of memory, processors, processes and files."""
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit", "ulimits"} <= set(service), name
        assert "privileged" not in service, name
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["api"]["ports"])


def test_in_production_everything_speaks_tls():
    """Laid over it, the second file leaves no port without TLS: store, broker and API, and the clients check them."""
    production = (Path(__file__).parents[1] / "docker-compose.production.yml").read_text().replace("!override", "")
    services = yaml.safe_load(production)["services"]
    assert set(services) == set(SERVICES)
    assert "--port 0 --tls-port 6379" in services["redis"]["command"]
    assert "9093" in services["api"]["environment"]["KAFKA_BOOTSTRAP_SERVERS"]
    for name in ("apply", "stream", "api"):
        assert services[name]["environment"]["KAFKA_SECURITY_PROTOCOL"] == "SSL"
        assert "ca.pem" in services[name]["secrets"]
    assert {"FEATURESTORE_TLS_CERT", "FEATURESTORE_TLS_KEY"} <= set(services["api"]["environment"])


def test_the_image_runs_as_a_user_without_rights_and_installs_by_hashes():
    """The Dockerfile's last user is a number, and pip takes nothing whose hash it does not know."""
    lines = (Path(__file__).parents[1] / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert any("--require-hashes" in line for line in lines)
    assert any("pip install" in line and "--no-deps" in line for line in lines)


def test_the_commands_exist():
    """What the containers run are commands of ours with options they have."""
    root = typer.main.get_command(build_app())
    for name in ("apply", "stream", "api"):
        words = SERVICES[name]["command"]
        command = root
        for word in words[1:]:
            if word.startswith("-"):
                assert any(word in option.opts for option in command.params), word
            elif word in getattr(command, "commands", {}):
                command = command.commands[word]
