"""Is the cluster reached with TLS and SASL as the environment says, and not without?

A real Apache Kafka with a second listener: certificates are checked against our own authority, users by password.
"""

import datetime as dt
import ipaddress
import socket

import pytest
from apache_kafka import ApacheKafka
from brokers import KAFKA, choice
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from streaming.source.kafka import KafkaSettings, KafkaSource, security_from
from streaming.source.publisher import Publisher
from streaming.source.records import SourceUnavailable

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PASSWORD = "only-for-tests"


def certificate(name, issuer=None):
    """A key and a certificate of 127.0.0.1, signed by `issuer` (else by itself, as an authority)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=400))
        .not_valid_after(now + dt.timedelta(days=400))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer[0] if issuer else key, hashes.SHA256())
    )
    return key, made


def pem(*parts):
    text = b""
    for part in parts:
        if isinstance(part, x509.Certificate):
            text += part.public_bytes(serialization.Encoding.PEM)
        else:
            text += part.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
    return text


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Secured(ApacheKafka):
    """A broker with a listener for TLS and passwords beside the plain one, which only its controller uses."""

    def __init__(self, folder):
        super().__init__(folder)
        self.tls_port = free_port()
        authority = certificate("authority")
        key, own = certificate("broker", authority)
        (folder / "broker.pem").write_bytes(pem(key, own, authority[1]))
        (folder / "authority.pem").write_bytes(pem(authority[1]))
        (folder / "stranger.pem").write_bytes(pem(certificate("stranger")[1]))
        text = self._properties.read_text()
        listener = f"SASL_SSL://127.0.0.1:{self.tls_port},CONTROLLER://"
        text = text.replace("CONTROLLER://", listener).replace(
            "protocol.map=CONTROLLER:PLAINTEXT", "protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT"
        )
        text += f"""
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={folder / "broker.pem"}
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  user_reader="{PASSWORD}";
"""
        self._properties.write_text(text)


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    if choice()[0] != KAFKA:
        pytest.skip("the embedded broker listens on loopback alone, in plain")
    broker = Secured(tmp_path_factory.mktemp("secured"))
    broker.start()
    yield broker
    broker.stop()


def environ(broker, **changes):
    return {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "reader",
        "KAFKA_SASL_PASSWORD": PASSWORD,
        "KAFKA_SSL_CAFILE": str(broker.folder / "authority.pem"),
    } | changes


def settings(broker, environ):
    return KafkaSettings(f"127.0.0.1:{broker.tls_port}", security_from(environ), request_timeout_ms=5_000)


def test_records_are_written_and_read_over_tls_with_a_password(secured):
    """Publisher and source take both from the environment's settings."""
    known = settings(secured, environ(secured))
    publisher = Publisher(known, "safe", partitions=1)
    publisher.send(b"k", b"v", timestamp_us=1_000_000)
    assert publisher.flush() == 1
    publisher.close()
    source = KafkaSource(known, ["safe"], group="safe")
    try:
        [partition] = source.partitions_of("safe")
        records, sought = [], False
        for _ in range(300):
            for change in source.drain_rebalances():
                for assigned in change.partitions:
                    source.seek(assigned, 0)
                    sought = True
            records += [record for batch in source.poll(100) for record in batch.records]
            if records:
                break
        assert sought
        assert [(record.key, record.value) for record in records] == [(b"k", b"v")]
        assert source.end_offsets([partition]) == {partition: 1}
    finally:
        source.close()


@pytest.mark.parametrize(
    "changes",
    [{"KAFKA_SASL_PASSWORD": "wrong"}, {"KAFKA_SSL_CAFILE": "stranger.pem"}, {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}],
)
def test_whoever_does_not_fit_is_refused(secured, changes):
    """A wrong password, an authority that did not sign, no TLS: an error that names the cluster, within seconds."""
    if "KAFKA_SSL_CAFILE" in changes:
        changes = {"KAFKA_SSL_CAFILE": str(secured.folder / "stranger.pem")}
    with pytest.raises(SourceUnavailable, match=str(secured.tls_port)):
        KafkaSource(settings(secured, environ(secured, **changes)), ["safe"], group="safe")
