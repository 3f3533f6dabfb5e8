#!/usr/bin/env bash
# Renders the Go templates of Modelfiles with Go's own text/template, and compares them with Jinja's rendering of the models'
# chat templates. Installs Go by apt if it is missing and apt is present.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v go >/dev/null; then
    apt-get install -y --no-install-recommends golang-go
fi
QUANTIER_NEEDS_GO=1 cargo test --release --test suite ollama_templates:: -- --nocapture
