#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serve a model with Semi-PD, in the foreground. Ctrl-C or SIGTERM stops it.
#
#   examples/semi_pd/serve.sh MODEL [further flags of sglang.launch_server]
#
# Then, from another terminal:
#
#   curl -s localhost:30000/generate -H 'Content-Type: application/json' \
#       -d '{"text": "Hello", "sampling_params": {"max_new_tokens": 16}}'
#   curl -s localhost:30000/semi_pd/status
set -eu
model=${1:?usage: serve.sh MODEL [flags]}
shift
exec python -m sglang.launch_server --model-path "$model" \
    --enable-semi-pd-coordinator "$@"
