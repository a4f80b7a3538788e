#!/usr/bin/env python3
"""The same as `lorastudy suite`."""

import sys

from lorastudy.cli.main import main

if __name__ == "__main__":
    main(["suite", *sys.argv[1:]])
