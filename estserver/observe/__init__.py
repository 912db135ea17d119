"""What a running server tells its operator: one line per request, and numbers.

The rooms: `exchange` the value that stands for one answered request; `wire` the one place that builds its line and
counts it; `lines` how lines are written, text or JSON; `tally` numbers that all workers of a server share; `metrics`
those numbers for Prometheus. Nothing here decides anything, and nothing here can fail a request.
"""

from estserver.observe.exchange import Exchange
from estserver.observe.lines import LogFormat, fields, log_to
from estserver.observe.tally import Tally
from estserver.observe.wire import Wire

__all__ = ["Exchange", "LogFormat", "Tally", "Wire", "fields", "log_to"]
