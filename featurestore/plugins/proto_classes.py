"""Which Protobuf message does a Feast ProtoFormat's class path stand for?

    orders_pb2.Order              a class that protoc made, in a module of the repo
    orders.desc:shop.Order        a message of a descriptor set (protoc --include_imports --descriptor_set_out)

The Plan carries descriptors, so that what decodes needs neither the module nor the file.
"""

import base64
import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from featurestore.errors import DefinitionError


def described(class_path: str, repo: Path, *, where: str) -> tuple[str, str]:
    """The descriptors, as base64 text, and the message's full name. Raises DefinitionError."""
    file, colon, message = class_path.rpartition(":")
    if colon:
        try:
            return base64.b64encode((repo / file).read_bytes()).decode(), message
        except OSError as error:
            raise DefinitionError(f"source {where!r}: its descriptor set cannot be read: {error}") from error
    module, _, name = class_path.rpartition(".")
    try:
        with _importable(repo):
            descriptor = getattr(importlib.import_module(module), name).DESCRIPTOR
    except (ImportError, ValueError, AttributeError) as error:
        raise DefinitionError(
            f"source {where!r}: class path {class_path!r} names no Protobuf class of the repo ({error}); "
            "expected module.Class, or a descriptor set and a message as in orders.desc:shop.Order"
        ) from error
    files = descriptor_pb2.FileDescriptorSet()
    _add(descriptor.file, files, set())
    return base64.b64encode(files.SerializeToString(deterministic=True)).decode(), descriptor.full_name


def _add(file: Any, files: descriptor_pb2.FileDescriptorSet, known: set[str]) -> None:
    """A file after those that it imports, each once."""
    if file.name in known:
        return
    known.add(file.name)
    for needed in file.dependencies:
        _add(needed, files, known)
    file.CopyToProto(files.file.add())


@contextlib.contextmanager
def _importable(repo: Path) -> Iterator[None]:
    sys.path.insert(0, str(repo))
    try:
        yield
    finally:
        sys.path.remove(str(repo))
