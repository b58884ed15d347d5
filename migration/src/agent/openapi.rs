//! The description of an agent's routes, made from the table that is served.

use crate::agent::routes::{ROUTES, Route};
use crate::agent::wire::{BODY_MAX, Kind};
use crate::agent::{MANAGERS_MAX, NAME_MAX, RANGES_MAX};
use serde_json::{Map, Value, json};

/// The OpenAPI 3.1 document of an agent.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths
            .entry(route.path)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(path) = path {
            path.insert(route.method.as_str().to_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemark agent",
            "version": "1",
            "license": { "name": "Apache-2.0 OR BSD-3-Clause" },
            "description": format!(
                "Locks and changes the devices of one host. Bodies are JSON of at most {BODY_MAX} octets."
            ),
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn content(schema: &str) -> Value {
    json!({ "application/json": { "schema": reference(schema) } })
}

fn operation(route: &Route) -> Value {
    let named = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let names = ["device", "task"];
    let parameters: Vec<Value> = names
        .iter()
        .filter(|name| route.path.contains(&format!("{{{name}}}")))
        .map(|name| named(name))
        .collect();
    let success = match route.answer {
        "Task" if route.body.is_some() && route.path.ends_with("/apply") => "202",
        _ => "200",
    };
    let mut operation = json!({
        "operationId": format!("{:?}", route.op),
        "summary": route.about,
        "responses": {
            success: { "description": "Done.", "content": content(route.answer) },
            "default": {
                "description": "Refused; `error` says why in one word.",
                "content": content("Refusal"),
            },
        },
    });
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = route.body {
        operation["requestBody"] = json!({ "required": true, "content": content(body) });
    }
    operation
}

/// An object with these properties, and which of them it must have.
fn object(properties: &Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required })
}

fn schemas() -> Value {
    let text = || json!({ "type": "string", "minLength": 1, "maxLength": NAME_MAX });
    let uuid = || json!({ "type": "string", "format": "uuid" });
    let count = || json!({ "type": "integer", "minimum": 0 });
    let flag = || json!({ "type": "boolean" });
    let kinds = [
        Kind::Held,
        Kind::Refused,
        Kind::Fenced,
        Kind::NotFound,
        Kind::Forbidden,
        Kind::BadRequest,
        Kind::Failed,
    ];
    let token = object(
        &json!({ "id": uuid(), "generation": count() }),
        &["id", "generation"],
    );
    let claim = object(
        &json!({ "id": uuid(), "attempt": count() }),
        &["id", "attempt"],
    );
    let claimant = object(&json!({ "id": uuid(), "who": text() }), &["id", "who"]);
    let holder = object(
        &json!({ "claimant": reference("Claimant"), "since": {
            "type": "integer", "description": "Milliseconds of the epoch, by the agent's clock.",
        } }),
        &["claimant", "since"],
    );
    let progress = object(
        &json!({
            "state": { "enum": ["not_started", "running", "finished", "failed"] },
            "reason": { "type": "string" },
        }),
        &["state"],
    );
    let range = object(
        &json!({ "start": count(), "end": count() }),
        &["start", "end"],
    );
    let tracking = object(
        &json!({
            "ranges": {
                "type": "array", "items": range, "minItems": 1, "maxItems": RANGES_MAX,
                "description": "Octets as the device addresses them; no two overlap.",
            },
            "granularity": {
                "type": "integer", "minimum": 4096, "maximum": 1 << 30,
                "description": "A power of two; the device may take a larger one.",
            },
            "pasid": { "type": "integer", "minimum": 0, "maximum": (1 << 20) - 1 },
            "mode": { "enum": ["bitmap", "bytes"], "default": "bitmap" },
        }),
        &["ranges", "granularity"],
    );
    let config = object(
        &json!({
            "tracking": reference("Tracking"),
            "suspended": { "type": "boolean", "default": false },
            "managers": {
                "type": "array", "items": text(), "maxItems": MANAGERS_MAX,
                "description": "Who may migrate the device; everyone, if nobody is named.",
            },
        }),
        &[],
    );
    let status = object(
        &json!({
            "name": text(),
            "abilities": object(
                &json!({ "tracking": flag(), "pasid": flag(), "suspend": flag() }),
                &["tracking", "pasid", "suspend"],
            ),
            "running": reference("Config"),
            "pending": { "anyOf": [reference("Config"), { "type": "null" }] },
            "holder": { "anyOf": [reference("Holder"), { "type": "null" }] },
            "lease_left_ms": { "type": ["integer", "null"] },
            "generation": count(),
            "task": { "type": ["string", "null"], "format": "uuid" },
            "progress": { "anyOf": [reference("Progress"), { "type": "null" }] },
        }),
        &["name", "abilities", "running", "generation"],
    );
    json!({
        "Document": { "type": "object" },
        "Done": { "type": "object" },
        "Token": object(&json!({ "token": reference("TokenValue") }), &["token"]),
        "TokenValue": token,
        "Claim": claim,
        "Claimant": claimant,
        "Holder": holder,
        "Progress": progress,
        "Tracking": tracking,
        "Config": config,
        "Status": status,
        "Statuses": { "type": "array", "items": reference("Status") },
        "Lock": object(&json!({ "claim": reference("Claim"), "who": text() }), &["claim", "who"]),
        "Locked": object(
            &json!({ "token": reference("TokenValue"), "lease_ms": count() }),
            &["token", "lease_ms"],
        ),
        "Stage": object(
            &json!({ "token": reference("TokenValue"), "config": reference("Config") }),
            &["token", "config"],
        ),
        "Task": object(
            &json!({ "task": uuid(), "progress": reference("Progress") }),
            &["task", "progress"],
        ),
        "Release": object(&json!({ "claim": reference("Claim") }), &["claim"]),
        "TakeOver": object(
            &json!({
                "task": uuid(), "claim": reference("Claim"), "who": text(),
                "force": { "type": "boolean", "default": false },
            }),
            &["task", "claim", "who"],
        ),
        "Free": object(&json!({ "who": text() }), &["who"]),
        "Freed": object(
            &json!({ "freed": { "anyOf": [reference("Holder"), { "type": "null" }] } }),
            &["freed"],
        ),
        "Refusal": object(
            &json!({
                "error": { "enum": kinds },
                "message": { "type": "string" },
                "holder": reference("Holder"),
            }),
            &["error", "message"],
        ),
    })
}
