#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the consumer with what pkg-config says of an installed innerkv, and runs it.
set -euo pipefail

compiler=$1 pkgconfig_dir=$2 build_dir=$3
shift 3

export PKG_CONFIG_PATH=$pkgconfig_dir
mkdir -p "$build_dir"
read -ra flags < <(pkg-config --cflags --libs innerkv)
"$compiler" -std=c++20 "$@" "$(dirname "$0")/main.cpp" -o "$build_dir/consumer" "${flags[@]}"
"$build_dir/consumer"
