"""The version of the code: written into jobs, recipes and manifests, so that every result names what made it."""

VERSION = "0.1.0"
