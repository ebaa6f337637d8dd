#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Shows a result of `understudy bench`: in lines, or as a page with plots."""
import argparse
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import figures  # noqa: E402
import page  # noqa: E402


def main():
    parser = argparse.ArgumentParser(prog="understudy bench report", description=(
        "Prints every figure of a result with its median, extremes and samples, or writes a page with plots: one file, which "
        "needs no network."))
    parser.add_argument("result", metavar="A.json", help="what understudy bench wrote with --json; - for standard input")
    parser.add_argument("-o", "--output", metavar="A.html", help="write a page here instead; - for standard output")
    options = parser.parse_args()
    try:
        document = figures.read(options.result)
        if options.output:
            page.write(document, options.output)
        else:
            print("\n".join(figures.lines(document)))
    except figures.NoResult as error:
        sys.exit(f"understudy bench report: {error}")
    except OSError as error:
        sys.exit(f"understudy bench report: {options.output}: {error.strerror}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads with head(1) has read enough
    sys.exit(main())
