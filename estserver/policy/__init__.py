"""What may be had: one declarative profile, four voices.

`decide` checks a request, `csr_attributes` answers `/csrattrs`, a refusal lists every violation in plain words, and
`explain` tells a person. Core: no I/O, no clock.
"""

from estserver.policy.decide import Ask, decide, device_of
from estserver.policy.profile import Profile, parse_profile
from estserver.policy.voices import csr_attributes, explain

__all__ = ["Ask", "Profile", "csr_attributes", "decide", "device_of", "explain", "parse_profile"]
