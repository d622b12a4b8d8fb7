"""The description of a service for people, made of what /openapi.json says, so that both always say the same."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from choral.analysis.page.markup import Markup, code, joined, table, words
from choral.deploy.serve.pages import shell


def docs_page(described: Mapping[str, Any], address: str) -> str:
    """Return a page.

    Args:
        described: an OpenAPI description.
        address: under which the service was asked, for examples.
    """
    address = address.rstrip("/")
    parts = [_examples(address)]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(f"{method.upper()} {path}", operation))
    parts += [_schema(name, schema) for name, schema in described["components"]["schemas"].items()]
    note = Markup('<p class="note">For programs: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1).</p>')
    return shell(f"{described['info']['title']}: API", described["info"]["description"], joined(*parts, note))


def _examples(address: str) -> Markup:
    shell_lines = (
        f"curl -F file=@photo.jpg {address}/predict\n"
        f"curl -F file=@first.jpg -F file=@second.png {address}/predict\n"
        f"curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg '{address}/predict?name=photo.jpg'"
    )
    python_lines = (
        "import httpx\n\n"
        f'found = httpx.post("{address}/predict", files=[("file", open("photo.jpg", "rb"))]).json()\n'
        'print(found["answers"][0])'
    )
    return _section(
        "Examples",
        joined(words("In a shell:", "told"), code(shell_lines), words("In Python:", "told"), code(python_lines)),
    )


def _operation(title: str, operation: Mapping[str, Any]) -> Markup:
    parts = [words(line, "lead") for line in str(operation["description"]).split("\n\n")]
    takes = [[one["name"], one["in"], str(one["description"])] for one in operation.get("parameters", [])]
    kinds: dict[str, list[str]] = {}
    for kind, one in operation.get("requestBody", {}).get("content", {}).items():
        kinds.setdefault(_type(one["schema"]), []).append(kind)
    takes += [["body", ", ".join(names), what] for what, names in kinds.items()]
    if takes:
        parts.append(table(("takes", "as", "what"), takes))
    statuses = [[status, str(one["description"])] for status, one in operation["responses"].items() if status != "200"]
    if statuses:
        parts.append(table(("status", "when"), statuses))
    return _section(title, joined(*parts))


def _schema(name: str, schema: Mapping[str, Any]) -> Markup:
    rows = [[field, _type(one), str(one.get("description", ""))] for field, one in schema["properties"].items()]
    return _section(name, joined(words(str(schema["description"]), "lead"), table(("field", "type", "what"), rows)))


def _section(title: str, body: Markup) -> Markup:
    return Markup(f'<section><h2>{escape(title)}</h2><div class="body described">{body}</div></section>')


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type(one) for one in schema['prefixItems'])}]"
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"name to {_type(schema['additionalProperties'])}"
    if kind == "object" and "properties" in schema:
        return ", ".join(f"{name}: {_type(one)}" for name, one in schema["properties"].items())
    return {"string": "bytes" if schema.get("format") == "binary" else "text", "null": "null"}.get(kind, kind)
