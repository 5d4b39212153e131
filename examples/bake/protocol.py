"""What server and client agree on."""

PORT = 8000


def greeting(who: str) -> str:
    return f"Hello {who}.\n"
