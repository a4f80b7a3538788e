#!/usr/bin/env python3
"""The same as `lorastudy prepare`."""

import sys

from lorastudy.cli.main import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
