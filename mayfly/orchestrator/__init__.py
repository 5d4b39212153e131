"""The service that owns leases and policy. It never sees a build's bytes.

Read in this order:

- `states.py`    what can happen to a lease: pure functions from lease to lease
- `plan.py`      what to do next: a table and pure functions of (leases, facts, limits)
- `limits.py`    what this machine holds, and which size a request gets
- `reconcile.py` the loop that makes the plan true
- `service.py`   what the API's routes do; `api.py` and `trust_routes.py` are their HTTP, and
                 `rights.py` says who may call which
- `trust/`       who a credential speaks for; `registry_tokens.py` what it opens in the registry
"""
