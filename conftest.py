"""Modules over frameworks that are not installed: there is nothing to collect doctests from."""

from importlib.util import find_spec

FRAMEWORKS = {
    "django": "django",
    "haystack": "haystack",
    "langchain": "langchain_core",
    "llama_index": "llama_index",
}

missing = [module for module, package in FRAMEWORKS.items() if find_spec(package) is None]
collect_ignore = [f"pybq/{module}{end}" for module in missing for end in ("", ".py")]
