"""A local Stripe for the v2 meter event stream.

One state machine, three doors. `Sandbox` holds sessions, rules, totals and faults;
`SandboxAdapter` lets `requests` talk to it inside the process; `meter_agent.sandbox.app` is the
same thing as an ASGI application and `meter_agent.sandbox.server` puts it on a real socket.

The sandbox is an independent judge: it imports nothing from the rest of the package, so that a
mistake in the agent is not copied into the thing that checks it.

Example:
    ```python
    import requests
    from meter_agent.sandbox import Fault, Sandbox, SandboxAdapter

    sandbox = Sandbox()
    session = requests.Session()
    session.mount("https://", SandboxAdapter(sandbox))
    sandbox.add_fault(Fault("reset", when="after", times=1))  # one acknowledgement gets lost
    ...
    assert sandbox.totals()["totals"] == {"api_requests": {"cus_123": "3"}}
    ```
"""

from meter_agent.sandbox._adapter import SandboxAdapter
from meter_agent.sandbox._faults import Fault
from meter_agent.sandbox._meters import Meter
from meter_agent.sandbox._reply import Reply, RequestLog
from meter_agent.sandbox._sandbox import Sandbox

__all__ = ["Fault", "Meter", "Reply", "RequestLog", "Sandbox", "SandboxAdapter"]
