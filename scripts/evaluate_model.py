#!/usr/bin/env python3
"""The same as `lorastudy evaluate`."""

import sys

from lorastudy.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
