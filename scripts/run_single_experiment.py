#!/usr/bin/env python3
"""The same as `lorastudy run`."""

import sys

from lorastudy.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
