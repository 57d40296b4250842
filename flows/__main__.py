"""Where the command begins: a Ctrl-C while it is still being imported is no traceback either."""

import sys

from flows.interrupts import end_of, interrupts_heard


def main() -> None:
    """Run the command line; ``python -m flows`` is the same as ``sdrpn``.

    Raises:
        SystemExit: with the command's status.
    """
    try:
        with interrupts_heard():
            from flows.cli import app
    except KeyboardInterrupt as error:
        word, status = end_of(error)
        print(word, file=sys.stderr)
        raise SystemExit(status) from None
    app()


if __name__ == "__main__":
    main()
