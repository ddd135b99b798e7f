"""From a client's request to a job, in any dialect.

The API keys that a request bears, and whose it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request

from harness.serving.failures import InvalidRequestError
from harness.serving.jobs import Job, Ticket
from harness.serving.service import Service

if TYPE_CHECKING:
    from starlette.types import Scope


def keys_of(scope: Scope) -> list[bytes]:
    """Return the keys that a request bears, as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``."""
    keys = [value.strip() for name, value in scope["headers"] if name == b"x-api-key"]
    for name, value in scope["headers"]:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            keys.append(token.strip())
    return keys


def owner_of(scope: Scope) -> str:
    """Return what requests with the same keys have in common, and no others; those without a key are one owner's.

    Whether a key is right is up to the guards: a proxy in front may know keys that this server does not ask for.
    """
    return hashlib.sha256(b"\n".join(sorted(set(keys_of(scope))))).hexdigest()


MAX_STOPS, MAX_STOP_CHARACTERS = 256, 4096
"""Stop texts of a request: all are looked for at every token."""

MAX_TEXT, MAX_NUMBER = 200, 2**63
"""Characters and size of what an option can be, so that a refusal can name it in a line."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client's request in one vocabulary. ``None`` means not given.

    Attributes:
        prompt: text before the cursor, or its tokens.
        suffix: text after the cursor.
        max_new_tokens: its limit, at least 1; the server's cap applies. ``None``: the cap alone.
        stop: texts that end the completion.
        keep_stop: whether such a text belongs to the completion.
        early_exit: early exit as given in its body: ``{strategy, threshold, decode, draft, draft_max, …}`` or
            ``"NAME:option=value"``.
        truncate: whether a prompt that is too long loses its beginning instead of being refused.
        generate_s: seconds after its first token when it ends, once there is a line break.
        seed: for random strategies.
        reuse: whether keys and values of an earlier prompt that begins alike may be reused, and this one's later.
    """

    prompt: str | Sequence[int]
    suffix: str | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    early_exit: Any = None
    truncate: bool = False
    generate_s: float | None = None
    seed: int = 0
    reuse: bool = True


def early_exit_of(*places: Any) -> Any:
    """Return the ``early_exit`` of the first of these that has one: the body, its ``parameters``, its ``options``."""
    for place in places:
        if isinstance(place, Mapping) and place.get("early_exit") is not None:
            return place["early_exit"]
    return None


def submit(request: Request, wanted: Wanted) -> Ticket:
    """Turn a request into a job and submit it; early-exit controls from body, header, query, in this order.

    Raises:
        ServingError: it cannot be served.
    """
    return submit_all(request, [wanted])[0]


def submit_all(request: Request, wanted: Sequence[Wanted]) -> list[Ticket]:
    """Submit several, all or none of them.

    Raises:
        ServingError: one of them cannot be served.
    """
    service: Service = request.app.state.service
    jobs = [_job(request, service, one) for one in wanted]
    tickets: list[Ticket] = []
    try:
        tickets.extend(service.submit(job) for job in jobs)
    except BaseException:
        for ticket in tickets:
            ticket.cancel()
        raise
    return tickets


def _job(request: Request, service: Service, wanted: Wanted) -> Job:
    given = wanted.early_exit
    if given is None:
        given = request.headers.get("x-early-exit") or request.query_params.get("early_exit")
    setting = service.settings.resolve(_read(given))
    stop = tuple(dict.fromkeys(text for text in wanted.stop if text))
    if len(stop) > MAX_STOPS or sum(map(len, stop)) > MAX_STOP_CHARACTERS:
        raise InvalidRequestError(
            f"{len(stop)} stop texts of {sum(map(len, stop))} characters were given; {MAX_STOPS} of "
            f"{MAX_STOP_CHARACTERS} in all are allowed."
        )
    cap = service.config.max_new_tokens
    return Job(
        prompt=service.encode(wanted.prompt, wanted.suffix or None, truncate=wanted.truncate),
        setting=setting,
        max_new_tokens=cap if wanted.max_new_tokens is None else min(wanted.max_new_tokens, cap),
        stop=stop,
        keep_stop=wanted.keep_stop,
        generate_s=wanted.generate_s,
        seed=wanted.seed,
        owner=owner_of(request.scope) if wanted.reuse else None,
    )


def _read(given: Any) -> Mapping[str, Any] | None:
    """Return controls as a mapping of plain values: from an object, its JSON, or the strategy mini-language."""
    if given is None:
        return None
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise _unreadable(given) from None
    if isinstance(given, Mapping):
        return _plain(given)
    if isinstance(given, str) and given.strip():
        name, *options = given.split(":")
        pairs = [option.partition("=") for option in options]
        if all(key.strip() and sign and value.strip() for key, sign, value in pairs):
            return _plain({"strategy": name.strip(), **{key.strip(): value.strip() for key, _, value in pairs}})
    raise _unreadable(given)


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options given: ``null`` means not given, and a list or an object is not a valid value."""
    said = {name: value for name, value in given.items() if value is not None}
    name = said.get("strategy", "")
    if not isinstance(name, str) or len(name) > MAX_TEXT:
        raise InvalidRequestError(f"early_exit.strategy = {str(name)[:60]!r} is no name of a strategy.")
    for option, value in said.items():
        if len(option) > MAX_TEXT or not _is_plain(value):
            raise InvalidRequestError(
                f"early_exit.{option[:60]} = {str(value)[:60]!r} cannot be the value of an option: "
                "give a number, a short text, true or false."
            )
    return said


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return isinstance(value, int | float) and -MAX_NUMBER <= value <= MAX_NUMBER  # NaN is not


def _unreadable(given: Any) -> InvalidRequestError:
    return InvalidRequestError(
        f'early_exit = {str(given)[:80]!r} cannot be read. Write {{"strategy": "NAME", "threshold": 0.9}} or '
        '"NAME:threshold=0.9".'
    )
