#!/usr/bin/env python3
"""The same as `lorastudy report`."""

import sys

from lorastudy.cli.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
