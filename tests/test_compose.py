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
    """Every secret is required from the environment, never given a value here."""
    assert "${REDIS_PASSWORD:?" in TEXT
    assert ":-" not in TEXT


def test_state_outlives_containers():
    """Redis, Kafka and the data folder are on volumes; the store never evicts."""
    assert {volume.split(":")[0] for name in ("redis", "kafka", "api") for volume in SERVICES[name]["volumes"]} == {
        "redis",
        "kafka",
        "data",
    }
    assert "noeviction" in SERVICES["redis"]["command"]


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
