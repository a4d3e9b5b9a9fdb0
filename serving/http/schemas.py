"""JSON schemas of messages, made from the messages themselves, so that they cannot differ."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_BIG = "a string, since many languages cannot hold it as a number"
_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]+$", "description": _BIG},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$", "description": _BIG},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}


def message_schemas(*messages: Descriptor) -> dict[str, Any]:
    """Returns a schema for each message, and for those inside them, by their short names."""
    schemas: dict[str, Any] = {}
    for message in messages:
        if message.name not in schemas:
            inner = [field.message_type for field in message.fields if field.message_type]
            schemas |= {message.name: _schema(message), **message_schemas(*inner)}
    return schemas


def _schema(message: Descriptor) -> dict[str, Any]:
    # Every field is there: gaps are filled.
    properties = {field.name: _field(field) for field in message.fields}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _field(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None:
        one: dict[str, Any] = {"$ref": f"#/components/schemas/{field.message_type.name}"}
    elif field.enum_type is not None:
        one = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    else:
        one = dict(_SCALARS[field.type])
    return {"type": "array", "items": one} if field.is_repeated else one
