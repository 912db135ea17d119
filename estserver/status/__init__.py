"""What became of certificates, told to whoever relies on them: lists that publish themselves, and OCSP answers.

Rules:
- What is told is read from the inventory; nothing is decided here.
- Slow work, such as signing a long list, is done beside the requests, by one worker of a server.
"""

from __future__ import annotations

from estserver.status.directory import Directory
from estserver.status.keeper import Keeper, start
from estserver.status.publish import Publisher
from estserver.status.responder import Reply, Responder

__all__ = ["Directory", "Keeper", "Publisher", "Reply", "Responder", "start"]
