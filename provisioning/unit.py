"""Units of systemd, and what they have read."""


def started_before(unit: str, path: str) -> str:
    """The command that names a file where a unit runs that was started before it was last written. Pure.

    To the microsecond, and by the machine's own clock on both sides.
    """
    started = f"systemctl show --timestamp=us+utc --property=ExecMainStartTimestamp --value {unit}"
    return f'! systemctl is-active --quiet {unit} || find {path} -newermt "$({started})" 2>/dev/null || true'
