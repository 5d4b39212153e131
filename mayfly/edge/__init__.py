"""The edge: the unprivileged program at the one public address.

`app` says what is answered where; `gateway` is the way to the registry, `relay` the way to runners'
SSH, `attach` the runners that are served and their own listeners, `proxy` the way everything else
takes.
"""
