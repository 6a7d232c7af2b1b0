#!/usr/bin/env bash
# Builds the image of this checkout (Dockerfile) and pushes it to a registry of your own:
#
#   launch/image.sh REGISTRY/NAME:TAG
#
# Log in there first (docker login REGISTRY). ENGINE=podman takes another engine. launch/gke.yaml takes the name as IMAGE.
# The image holds code, no data and no weights but the phantom's: keep runs on a volume.
set -euo pipefail
image=${1:?REGISTRY/NAME:TAG of a registry that you may push to}
engine=${ENGINE:-docker}
"$engine" build --tag "$image" "$(dirname "$0")/.."
"$engine" push "$image"
