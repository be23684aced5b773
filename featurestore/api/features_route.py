"""How is a request for features answered? Let in, decoded, permitted, read, written: on one path, however it came.

The application calls this with the raw request; FastAPI's route of the same name, which documents it, calls the same.
"""

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from featurestore.api.answer import media_type
from featurestore.api.body import read_body
from featurestore.api.direct import Answer, RawRequest
from featurestore.api.faults import answer_to, defect
from featurestore.api.gate import Asking, Gate
from featurestore.api.limits import Limits
from featurestore.api.metrics import Metrics
from featurestore.api.request import decode_request
from featurestore.api.serving import PlanWatch
from featurestore.errors import StaleStore
from validation.errors import PlatformError

PATH = "/get-online-features"
_log = logging.getLogger(__name__)


class FeaturesRoute:
    """`POST /get-online-features`."""

    def __init__(self, watch: PlanWatch, gate: Gate, limits: Limits, metrics: Metrics) -> None:
        self._watch = watch
        self._gate = gate
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it; a caller who went away gets nothing."""
        try:
            status, headers, body = await self.respond(RawRequest(scope), receive)
        except ClientDisconnect:
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def respond(self, request: Asking, receive: Receive) -> Answer:
        """The response to a request, one of the error shape for whatever fails; raises ClientDisconnect."""
        started = time.perf_counter()
        try:
            body, wanted = await self._answer(request, receive)
            answer = Answer(200, [(b"content-type", wanted.encode()), (b"content-length", b"%d" % len(body))], body)
        except PlatformError as error:
            failed = answer_to(error)
            answer = Answer(failed.status_code, failed.raw_headers, bytes(failed.body))
        except ClientDisconnect:
            raise
        except Exception:  # noqa: BLE001 - answered as a defect, logged with its traceback
            # The outermost loop of a request: a defect of ours.
            _log.exception("POST %s failed", PATH)
            failed = defect()
            answer = Answer(failed.status_code, failed.raw_headers, bytes(failed.body))
        self._metrics.answered(answer.status, time.perf_counter() - started)
        return answer

    async def _answer(self, request: Asking, receive: Receive) -> tuple[bytes, str]:
        """1. Let in, with a role that may read. 2. Decode within limits. 3. Permit. 4. Read and write the answer."""
        gate = self._gate
        caller = gate.admit(request)
        gate.begin(request, caller, "read_online", self._watch.current.plan)
        wanted = media_type(request.headers.get("accept"))
        body = await read_body(request.headers, receive, self._limits.body_bytes)
        asked = decode_request(body)
        serving = self._watch.current
        kind = serving.known(asked)
        if kind is None or caller not in kind.permitted:
            named = serving.names_of(asked, body)
            rules = gate.permissions(serving.plan)
            service = named.feature_service
            answering = serving.answering(service)
            gate.allow(
                request,
                caller,
                lambda: rules.check_read(caller, named.features, service, answering=answering),
                resources=(*named.features, *(() if service is None else (service,))),
            )
            kind = kind or serving.kind(asked, named)
            kind.permit(caller)
        try:
            return await serving.answer(kind, asked, wanted), wanted
        except UnicodeDecodeError as error:
            raise StaleStore("a stored row holds text that is not UTF-8; write the row again") from error
