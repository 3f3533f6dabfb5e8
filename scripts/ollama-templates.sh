#!/usr/bin/env bash
# Renders the Go templates that Modelfiles get with Go's own text/template, against what Jinja makes of the models' chat
# templates. Installs Go by apt where it is missing and apt is there.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v go >/dev/null; then
    apt-get install -y --no-install-recommends golang-go
fi
QUANTIER_NEEDS_GO=1 cargo test --release --test suite ollama_templates:: -- --nocapture
