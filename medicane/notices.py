"""What is told of the onset of an event, and the channels it is told over: a webhook, mail.

A notice carries a name of its own (``Idempotency-Key``, ``Message-ID``) that stays when it is sent
again, so that a receiver can tell the second from the first.
"""

from __future__ import annotations

import http.client
import json
import re
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import EmailMessage
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from medicane import __version__
from medicane.config import Email, Watch, is_loopback
from medicane.errors import InputError, redacted

#: Gives the secret of a name; None if there is none.
Secret = Callable[[str], str | None]

#: Seconds in which a server must answer, and the waits before the second and the third try.
PATIENCE = 30
DELAYS = (1.0, 4.0)


class Notice(NamedTuple):
    """The onset of an event: its name, a line and a sentence for people, values for programs."""

    key: str
    subject: str
    text: str
    values: dict[str, Any]


class Channel(Protocol):
    """Where notices go."""

    @property
    def name(self) -> Literal["webhook", "email"]:
        """What the configuration calls it."""

    def send(self, notice: Notice) -> str | None:
        """Send once: a remark, if there is one; one of `FAULTS` if the notice is not taken."""

    def without_secrets(self, text: str) -> str:
        """A text in which no secret of the channel is left."""


class NotTakenError(Exception):
    """The server has answered, and not taken the notice."""


#: What sending may end in.
FAULTS = (OSError, http.client.HTTPException, smtplib.SMTPException, NotTakenError)


class Webhook:
    """A POST of JSON. Redirections are not followed: the token is for this address alone."""

    name: Literal["webhook"] = "webhook"

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("watch.webhook", "must be an address http(s)://host/…")
        if token is not None and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InputError("watch.webhook_token", "is sent over https only", found="http")
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise InputError("watch.webhook_token", "must be visible ASCII characters")
        self._url, self._token = url, token

    def send(self, notice: Notice) -> str | None:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"medicane/{__version__}",
            "Idempotency-Key": notice.key,
        }
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        body = json.dumps({**notice.values, "text": notice.text}).encode()
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=PATIENCE):
                pass
        except urllib.error.HTTPError as error:
            with error:
                raise NotTakenError(f"the server answered {error.code}") from None
        return None

    def without_secrets(self, text: str) -> str:
        # A path may be the secret, as those of chat services are.
        return _cut(text, self._url, urlsplit(self._url).path, self._token)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


class Mail:
    """One mail to all recipients, through a server that takes mail from this machine."""

    name: Literal["email"] = "email"

    def __init__(self, settings: Email, password: str | None) -> None:
        self._settings, self._password = settings, password

    def send(self, notice: Notice) -> str | None:
        wanted = self._settings
        message = EmailMessage()
        message["Subject"], message["From"] = notice.subject, wanted.sender
        message["To"] = ", ".join(wanted.to)
        message["Message-ID"] = f"<{notice.key}@{wanted.sender.partition('@')[2]}>"
        told = "\n".join(f"{name}: {value}" for name, value in notice.values.items())
        message.set_content(f"{notice.text}\n\n{told}\n")
        context = ssl.create_default_context()
        server: smtplib.SMTP
        if wanted.security == "tls":
            server = smtplib.SMTP_SSL(wanted.host, wanted.port, timeout=PATIENCE, context=context)
        else:
            server = smtplib.SMTP(wanted.host, wanted.port, timeout=PATIENCE)
        try:
            if wanted.security == "starttls":
                server.starttls(context=context)
            if wanted.user is not None and self._password is not None:
                server.login(wanted.user, self._password)
            refused = server.send_message(message)
            with suppress(*FAULTS):  # it is taken, however the server says goodbye
                server.quit()
        finally:
            server.close()
        # The others have it: to send it again would tell them twice.
        return f"the server refused {', '.join(refused)}" if refused else None

    def without_secrets(self, text: str) -> str:
        return _cut(text, self._password)


def channels_of(settings: Watch, secret: Secret) -> list[Channel]:
    """The channels that are configured.

    Raises
    ------
    InputError
        If a secret is named and not there, or is not what its key takes. It tells no value.
    """

    def named(name: str | None, key: str) -> str | None:
        if name is None:
            return None
        value = secret(name)
        if not value:
            raise InputError(
                f"watch.{key}",
                "the environment variable it names must be set (in a flow, or the Secret block)",
                found="no value",
            )
        return value

    found: list[Channel] = []
    if settings.webhook is not None:
        url = settings.webhook
        url = url if "://" in url else named(url, "webhook") or ""
        found.append(Webhook(url, named(settings.webhook_token, "webhook_token")))
    if settings.email.to:
        found.append(Mail(settings.email, named(settings.email.password, "email.password")))
    return found


def deliver(channel: Channel, notice: Notice) -> tuple[bool, str | None]:
    """Send a notice, three times at most: whether it is sent, and what was wrong, if anything."""
    fault = None
    for delay in (0.0, *DELAYS):
        time.sleep(delay)
        try:
            fault = channel.send(notice)
        except FAULTS as error:
            fault = _told(error)
        else:
            return True, fault and channel.without_secrets(fault)
    return False, channel.without_secrets(fault or "")


def onset_notice(event: Mapping[str, Any], about: Mapping[str, Any]) -> Notice:
    """The notice of an event.

    Parameters
    ----------
    event
        A row of ``events.csv``.
    about
        Attributes of the detections.
    """
    place = [event["centre_latitude"], event["centre_longitude"]]
    known = all(value == value for value in place)  # NaN where the model does not locate
    where = " near {:.1f} N, {:.1f} E".format(*place) if known else ""
    idealised = bool(about.get("idealised_training_data"))
    values = {
        "event": "onset",
        "id": event["event_id"],
        "start": event["start"],
        "latest": event["end"],
        "n_maps": int(event["n_maps"]),
        "max_probability": float(event["max_probability"]),
        "time_of_max": event["time_of_max"],
        "latitude": place[0] if known else None,
        "longitude": place[1] if known else None,
        "threshold": float(about["threshold"]),
        "model": redacted(str(about["model_uri"])),
        "idealised_training_data": idealised,
    }
    text = (
        f"Medicane detected from {event['start']} UTC on{where}: {values['n_maps']} maps up to "
        f"{event['end']}, probability up to {values['max_probability']:.2f} (threshold "
        f"{values['threshold']:.2f}), by {values['model']}."
    )
    if idealised:
        text += " The model was trained on an idealised sea."
    digest = str(about["model_digest"]).rpartition(":")[2][:8]
    subject = f"Medicane detected from {event['start']} UTC on"
    return Notice(f"{event['event_id']}-{digest}", subject, text, values)


def _told(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the server answered {error.smtp_code}"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"the server refused {', '.join(error.recipients)}"
    reason = getattr(error, "reason", error)
    told = str(reason).strip().splitlines()
    return redacted(told[0]) if told else type(reason).__name__


def _cut(text: str, *secrets: str | None) -> str:
    for secret in secrets:
        if secret is not None and len(secret) > 1:
            text = text.replace(secret, "***")
    return text
