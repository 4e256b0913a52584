#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints a Python interpreter that has tools/requirements.txt installed, made on first use."""

import fetch


def main():
    print(fetch.python_environment())


if __name__ == "__main__":
    fetch.run_main(main)
