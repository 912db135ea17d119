"""Topics and sources: one identifier, one level, one speaker."""

from __future__ import annotations

import pytest

from devicesim.mqtt import topics
from devicesim.mqtt.topics import EventType


def test_every_type_has_a_place():
    assert set(topics.PLACES) == set(EventType)
    assert topics.topic_for(EventType.PROVISIONED, "s-07") == "est/1/s/s-07/evt/provisioned"
    assert topics.topic_for(EventType.CURRENT, "acme-1") == "est/1/d/acme-1/identity"
    assert topics.topic_for(EventType.REVOKED, "line2", domain="acme") == "acme/1/ca/line2/evt/revoked"
    assert topics.device_presence("acme-1") == "est/1/d/acme-1/presence"


@pytest.mark.parametrize("event_type", EventType)
def test_topics_read_back(event_type):
    parsed = topics.parse_topic(topics.topic_for(event_type, "x-1"))
    assert parsed is not None
    assert (parsed.owner, f"{parsed.tail}") == ("x-1", topics.PLACES[event_type].tail)


@pytest.mark.parametrize(
    "text", ["", "est", "est/2/d/a/identity", "est/1/x/a/identity", "est/1/d/+/identity", "/1/d/a/b"]
)
def test_other_topics_are_not_ours(text):
    assert topics.parse_topic(text) is None


@pytest.mark.parametrize("text", ["", "A", "-a", "a-", "a/b", "a+", "#", "ä", "a" * 65, "a\n"])
def test_what_is_not_an_identifier(text):
    with pytest.raises(ValueError, match="identifier"):
        topics.identifier(text)


def test_sources_name_their_owner():
    assert topics.source_owner(topics.station_source("hh1", "l2", "s-07"), "s") == "s-07"
    assert topics.source_owner(topics.device_source("acme-1"), "d") == "acme-1"
    assert topics.source_owner(topics.ca_source("line2"), "ca") == "line2"
    assert topics.source_owner("/device/acme-1", "ca") is None
    assert topics.source_owner("/device/acme-1/x", "d") is None
