"""Notices over real servers on loopback: taken once, refused, lost; never is a secret told."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from medicane import notices
from medicane.config import make_config
from medicane.errors import InputError
from medicane.notices import Channel, Notice, channels_of, deliver, onset_notice
from tests.servers import mail_server, webhook

SECRETS = {"TOKEN": "t0ken-planted", "HOOK": "", "PASSWORD": "pass-planted"}
NOTICE = Notice(
    "medicane_20010512T06-abc", "A medicane", "It began.", {"id": "x", "latitude": None}
)
EVENT = {
    "event_id": "medicane_20010512T06",
    "start": "2001-05-12T06:00:00",
    "end": "2001-05-12T18:00:00",
    "n_maps": 3,
    "max_probability": 0.93,
    "time_of_max": "2001-05-12T12:00:00",
    "centre_latitude": 36.5,
    "centre_longitude": float("nan"),
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "DELAYS", (0.0, 0.0))


def channel(**secrets: str) -> Any:
    def make(**watch: Any) -> Channel:
        config = make_config(
            {"schema_version": 1, "data": {"grids": ["x.nc"]}, "watch": watch}, where="here"
        )
        (one,) = channels_of(config.watch, {**SECRETS, **secrets}.get)
        return one

    return make


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_webhook_gets_values_a_text_a_key_and_the_token() -> None:
    with webhook() as (address, server):
        assert deliver(channel()(webhook=address, webhook_token="TOKEN"), NOTICE) == (True, None)
    ((_, headers, body),) = server.posts
    assert body == {"id": "x", "latitude": None, "text": "It began."}
    assert headers["Authorization"] == "Bearer t0ken-planted"
    assert headers["Idempotency-Key"] == NOTICE.key


def test_a_webhook_that_fails_is_tried_three_times() -> None:
    with webhook(503, 500) as (address, server):
        assert deliver(channel()(webhook=address), NOTICE) == (True, None)
    assert [status for status, _, _ in server.posts] == [503, 500, 204]
    with webhook(*[503] * 3) as (address, server):
        assert deliver(channel()(webhook=address), NOTICE) == (False, "the server answered 503")
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.posts}) == 1


def test_the_token_does_not_follow_a_redirection() -> None:
    with webhook(*[307] * 3) as (address, server):
        sent = deliver(channel()(webhook=address, webhook_token="TOKEN"), NOTICE)
    assert sent == (False, "the server answered 307")
    assert len(server.posts) == 3


def test_nobody_there_is_a_fault_that_tells_no_secret() -> None:
    address = f"http://127.0.0.1:{closed_port()}/services/planted-path"
    made = channel(HOOK=address)(webhook="HOOK")
    sent, fault = deliver(made, NOTICE)
    assert not sent
    assert "refused" in (fault or "")
    assert "planted" not in (fault or "")
    assert made.without_secrets(f"{address} of planted-path") == "*** of planted-path"


def mail(port: int, **more: Any) -> dict[str, Any]:
    told = {"to": ["ops@sea.example"], "host": "127.0.0.1", "port": port, "security": "none"}
    return {"email": {**told, "sender": "watch@sea.example", **more}}


def test_a_mail_tells_all_its_recipients_once() -> None:
    with mail_server("me", "pass-planted") as (port, mails):
        to = ["ops@sea.example", "nobody@sea.example", "duty@sea.example"]
        made = channel()(**mail(port, to=to, user="me", password="PASSWORD"))
        sent, fault = deliver(made, NOTICE)
    assert (sent, fault) == (True, "the server refused nobody@sea.example")
    ((recipients, message),) = mails
    assert recipients == ["ops@sea.example", "duty@sea.example"]
    assert message["Subject"] == "A medicane"
    assert message["Message-ID"] == f"<{NOTICE.key}@sea.example>"
    assert message.get_content().startswith("It began.\n")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"user": "me", "password": "WRONG"}, "the server answered 535"),
        ({"to": ["nobody@sea.example"]}, "the server refused nobody@sea.example"),
        ({"security": "starttls"}, "STARTTLS extension not supported by server."),
    ],
)
def test_a_mail_that_is_not_taken_is_told(more: dict[str, Any], told: str) -> None:
    with mail_server("me", "pass-planted") as (port, mails):
        made = channel(WRONG="wrong-planted")(**mail(port, **more))
        assert deliver(made, NOTICE) == (False, told)
    assert mails == []


@pytest.mark.parametrize(
    ("watch", "told"),
    [
        ({"webhook": "ABSENT"}, r"watch\.webhook: the environment variable .* must be set"),
        ({"webhook": "WORD"}, r"watch\.webhook: must be an address"),
        ({"webhook": "http://sea.example/", "webhook_token": "TOKEN"}, r"sent over https only"),
        ({"webhook": "https://me:planted@sea.example/"}, r"watch\.webhook: must hold no user"),
        ({"webhook": "https://sea.example/?key=planted"}, r"watch\.webhook: must hold no user"),
        ({"webhook": "ftp://sea.example/planted"}, r"must be an address .* found another one"),
        ({"webhook_token": "xoxb.planted/="}, r"watch\.webhook_token: must be the name of"),
        ({"email": {"to": ["no address"]}}, r"watch\.email\.to: must be addresses"),
        ({"email": {"user": "me"}}, r"user and password go together"),
        (mail(25, host="sea.example", user="me", password="PASSWORD"), r"needs security tls"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_done(
    watch: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told) as refused:
        channel(WORD="planted")(**watch)
    assert "planted" not in str(refused.value)


def test_the_notice_of_an_event_tells_what_is_known() -> None:
    about = {
        "threshold": 0.41,
        "model_uri": "models:/medicane/3",
        "model_digest": "sha256:0123456789",
    }
    notice = onset_notice(EVENT, about)
    assert notice.key == "medicane_20010512T06-01234567"
    assert (notice.values["latitude"], notice.values["longitude"]) == (None, None)
    assert "from 2001-05-12T06:00:00 UTC on: 3 maps" in notice.text
    placed = onset_notice(
        {**EVENT, "centre_longitude": 19.0}, {**about, "idealised_training_data": 1}
    )
    assert "near 36.5 N, 19.0 E" in placed.text
    assert placed.text.endswith("The model was trained on an idealised sea.")
