"""The API documentation page, made from /openapi.json, so that the two never differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choral.deploy.serve.pages import render_service_page


def render_docs(openapi: Mapping[str, Any], address: str) -> str:
    """Return the documentation of an API as a page.

    Args:
        openapi: an OpenAPI description.
        address: the URL at which the client reached the service, for the examples.
    """
    operations = [
        _operation(f"{method.upper()} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in openapi["components"]["schemas"].items()]
    return render_service_page(
        "docs.html",
        title=f"{openapi['info']['title']}: API",
        subtitle=openapi["info"]["description"],
        address=address.rstrip("/"),
        operations=operations,
        schemas=schemas,
    )


def _operation(title: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    inputs = [[one["name"], one["in"], str(one["description"])] for one in operation.get("parameters", [])]
    media_types: dict[str, list[str]] = {}
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        media_types.setdefault(_type_text(body["schema"]), []).append(media_type)
    inputs += [["body", ", ".join(names), text] for text, names in media_types.items()]
    return {
        "title": title,
        "paragraphs": str(operation["description"]).split("\n\n"),
        "inputs": inputs,
        "errors": [
            [status, str(response["description"])]
            for status, response in operation["responses"].items()
            if status != "200"
        ],
    }


def _schema(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    fields = [[field, _type_text(one), str(one.get("description", ""))] for field, one in schema["properties"].items()]
    return {"name": name, "description": str(schema["description"]), "fields": fields}


def _type_text(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema's type as text, such as "list of text"."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type_text(one) for one in schema["anyOf"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type_text(one) for one in schema['prefixItems'])}]"
        return f"list of {_type_text(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"name to {_type_text(schema['additionalProperties'])}"
    if kind == "object" and "properties" in schema:
        return ", ".join(f"{name}: {_type_text(one)}" for name, one in schema["properties"].items())
    return {"string": "bytes" if schema.get("format") == "binary" else "text", "null": "null"}.get(kind, kind)
