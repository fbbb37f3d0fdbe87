//! The JSON Schema of recipes, made from the contracts, for editors and other programs.
//!
//! It says of a recipe what a schema can say: words, types, ranges, required fields. That a reference leads to a stage and has
//! the right type, that no stage waits for itself, and what a source holds is said by `levain check`.

use serde_json::{Map, Value, json};

use crate::artifact::phrase;
use crate::contract::{Arity, Contract, Contracts, Field, FieldType, Need, Port};
use crate::recipe::yaml::MAX_BYTES;

/// What a stage's name is made of, as the reader checks it.
const NAME: &str = "^[A-Za-z_][A-Za-z0-9_-]{0,99}$";
/// A stage's name, or one of its outputs.
/// Inside of groups with rounds (`align[2].tuned`) and cells (`rm[size=500].judge`).
const REFERENCE: &str = r"^([A-Za-z_][A-Za-z0-9_-]{0,99}(\[[^\[\]]+\])?(\.[A-Za-z_][A-Za-z0-9_-]*(\[[^\[\]]+\])?)*|.*\$\{.*)$";

/// The JSON Schema (draft 2020-12) of a recipe whose kinds are `contracts`.
pub fn recipe_schema(contracts: Contracts) -> Value {
    let mut stages = Map::new();
    for contract in contracts.kinds {
        stages.insert(contract.kind.to_owned(), stage(contract));
    }
    let kinds: Vec<&str> = contracts.kinds.iter().map(|c| c.kind).collect();
    let choose: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            json!({
                "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
                "then": { "$ref": format!("#/$defs/kinds/{kind}") },
            })
        })
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Levain recipe",
        "description": format!("A pipeline of stages that fine-tunes a language model. Language version 1; at most {MAX_BYTES} bytes."),
        "type": "object",
        "required": ["levain", "stages"],
        "additionalProperties": false,
        "properties": {
            "levain": { "const": 1, "description": "The version of the recipe language." },
            "name": { "type": "string", "pattern": r"\S", "description": "The recipe's name; the file's own when not given." },
            "seed": scalar_or_parameter(json!({ "type": "integer", "minimum": 0 }), "Where the random streams of stages without a seed of their own start.", Some(json!(0))),
            "device": scalar_or_parameter(json!({ "type": "string", "pattern": "^(cpu|cuda|cuda:[0-9]{1,3})$" }), "Where tensors live: `cpu`, `cuda` or `cuda:0`. The option `--device` wins.", None),
            "threads": scalar_or_parameter(json!({ "type": "integer", "minimum": 1, "maximum": 4096 }), "Threads of tensor stages. Equal bytes are promised for equal thread counts.", None),
            "params": {
                "type": ["object", "null"],
                "description": "Values that stages use as \"${params.name}\", and `--set params.name=…` replaces.",
            },
            "stages": {
                "type": "object",
                "minProperties": 1,
                "description": "Name → stage. An edge is a reference to another stage's output.",
                "propertyNames": { "pattern": NAME },
                "additionalProperties": { "$ref": "#/$defs/item" },
            },
            "outputs": {
                "type": ["object", "null"],
                "description": "Name → a folder that every run checks and restores.",
                "additionalProperties": { "$ref": "#/$defs/output" },
            },
        },
        "$defs": {
            "item": {
                "if": { "type": "object", "anyOf": [{ "required": ["repeat"] }, { "required": ["matrix"] }] },
                "then": { "if": { "required": ["repeat"] }, "then": { "$ref": "#/$defs/repeat" }, "else": { "$ref": "#/$defs/matrix" } },
                "else": { "$ref": "#/$defs/stage" },
            },
            "repeat": {
                "type": "object",
                "description": "Stages that are made round after round: `align[1].tuned`, `align[2].tuned`; `align.tuned` is the last one.",
                "required": ["repeat", "stages"],
                "additionalProperties": false,
                "properties": {
                    "repeat": scalar_or_parameter(json!({ "type": "integer", "minimum": 1, "maximum": 10_000 }), "How many rounds.", None),
                    "carry": {
                        "type": ["object", "null"],
                        "description": "Name → what the name is in the first round, and which stage of a round it is in the next.",
                        "propertyNames": { "pattern": NAME },
                        "additionalProperties": {
                            "type": "object",
                            "required": ["first", "then"],
                            "additionalProperties": false,
                            "properties": { "first": { "$ref": "#/$defs/reference" }, "then": { "$ref": "#/$defs/reference" } },
                        },
                    },
                    "stop_if": {
                        "type": ["object", "null"],
                        "description": "After a round in which it holds, later rounds are skipped; at least one of `above` and `below`.",
                        "required": ["metrics", "metric"],
                        "anyOf": [{ "required": ["above"] }, { "required": ["below"] }],
                        "additionalProperties": false,
                        "properties": {
                            "metrics": { "$ref": "#/$defs/reference", "description": "The stage of a round that gives the metrics." },
                            "metric": { "type": "string", "minLength": 1, "description": "The name of a number in them, such as `tuned.loss`." },
                            "above": scalar_or_parameter(json!({ "type": ["number", "null"] }), "It holds when the number is greater.", None),
                            "below": scalar_or_parameter(json!({ "type": ["number", "null"] }), "It holds when the number is less.", None),
                        },
                    },
                    "seed": scalar_or_parameter(json!({ "type": ["integer", "null"], "minimum": 0 }), "Where the random streams of the group's stages start; that of the recipe, or of the group around it, unless given.", None),
                    "when": when(),
                    "stages": inner_stages(),
                },
            },
            "matrix": {
                "type": "object",
                "description": "Stages that are made once for each combination of values: `rm[size=500].judge`; `rm.judge` is all of them.",
                "required": ["matrix", "stages"],
                "additionalProperties": false,
                "properties": {
                    "matrix": {
                        "description": "Axis → its values, all of which are combined; or a list of cells. Stages use them as \"${matrix.axis}\".",
                        "anyOf": [
                            { "type": "object", "minProperties": 1, "propertyNames": { "pattern": NAME }, "additionalProperties": { "anyOf": [{ "type": "array", "minItems": 1 }, { "$ref": "#/$defs/parameter" }] } },
                            { "type": "array", "minItems": 1, "items": { "type": "object", "minProperties": 1 } },
                            { "$ref": "#/$defs/parameter" },
                        ],
                    },
                    "exclude": {
                        "description": "Cells to leave out: all that agree with an entry on every axis that it names.",
                        "type": ["array", "null"],
                        "items": { "type": "object", "minProperties": 1 },
                    },
                    "seed": scalar_or_parameter(json!({ "type": ["integer", "null"], "minimum": 0 }), "Where the random streams of the group's stages start; that of the recipe, or of the group around it, unless given.", None),
                    "when": when(),
                    "stages": inner_stages(),
                },
            },
            "stage": {
                "type": "object",
                "required": ["kind"],
                "properties": { "kind": { "enum": kinds, "description": kind_words(contracts) } },
                "allOf": choose,
            },
            "kinds": stages,
            "output": {
                "type": "object",
                "required": ["from", "to"],
                "additionalProperties": false,
                "properties": {
                    "from": { "$ref": "#/$defs/reference", "description": "The stage, or `stage.output`, that is written." },
                    "format": { "enum": ["files", "peft"], "default": "files", "description": "`files`: the artifact's own files. `peft`: an adapter as Python's PEFT loads it, with the tokenizer." },
                    "to": { "type": "string", "minLength": 1, "description": "The folder, below the recipe's own." },
                },
            },
            "parameter": {
                "type": "string",
                "pattern": r"\$\{\s*((params|matrix)\.[^}]+|round\s*)\}",
                "description": "The value of a parameter: \"${params.name}\"; in a group also \"${round}\" or \"${matrix.axis}\".",
            },
            "reference": { "type": "string", "pattern": REFERENCE },
            "place": {
                "type": "string",
                "minLength": 1,
                "description": "A path, `hf://owner/repo@revision[/path]`, `hf://datasets/owner/repo@revision[/path]`, `https://…`, or `pypi:name==version#path`.",
            },
            "group": {
                "anyOf": [
                    { "$ref": "#/$defs/place" },
                    { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/place" } },
                ],
            },
            "source": {
                "anyOf": [
                    { "$ref": "#/$defs/group" },
                    {
                        "type": "object",
                        "required": ["from"],
                        "additionalProperties": false,
                        "properties": {
                            "from": {
                                "description": "One place, or alternatives: the first that answers and matches wins.",
                                "anyOf": [
                                    { "$ref": "#/$defs/place" },
                                    { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/group" } },
                                ],
                            },
                            "blake3": { "type": "string", "pattern": r"^([0-9a-f]{64}|.*\$\{.*)$", "description": "The digest that the bytes must have." },
                        },
                    },
                ],
            },
        },
    })
}

/// `when`, which stages and groups have.
fn when() -> Value {
    json!({
        "description": "Whether it is there at all: true, false, or two values with `==` or `!=` between them. Parameters only.",
        "type": ["boolean", "string"],
    })
}

fn inner_stages() -> Value {
    json!({
        "type": "object",
        "minProperties": 1,
        "propertyNames": { "pattern": NAME },
        "additionalProperties": { "$ref": "#/$defs/item" },
    })
}

fn kind_words(contracts: Contracts) -> String {
    let lines: Vec<String> = contracts
        .kinds
        .iter()
        .map(|c| format!("`{}`: {}", c.kind, c.about))
        .collect();
    format!("What the stage is.\n\n{}", lines.join("\n\n"))
}

fn stage(contract: &Contract) -> Value {
    let mut properties = Map::new();
    let mut required = vec!["kind"];
    properties.insert(
        "kind".to_owned(),
        json!({ "const": contract.kind, "description": contract.about }),
    );
    properties.insert("when".to_owned(), when());
    for port in contract.ports {
        properties.insert(port.name.to_owned(), port_schema(port));
        if port.arity.is_required() {
            required.push(port.name);
        }
    }
    for field in contract.fields {
        properties.insert(field.name.to_owned(), field_schema(field));
        if matches!(field.need, Need::Required) && !matches!(field.ty, FieldType::Seed) {
            required.push(field.name);
        }
    }
    json!({
        "type": "object",
        "description": contract.about,
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn port_schema(port: &Port) -> Value {
    let mut doc = format!("{} Takes {}.", port.doc.trim_end(), phrase(port.accepts));
    if !port.layouts.is_empty() {
        doc.push_str(&format!(" Layouts: {}.", port.layouts.join(", ")));
    }
    let one = json!({ "$ref": "#/$defs/reference" });
    match port.arity {
        Arity::One => json!({ "$ref": "#/$defs/reference", "description": doc }),
        Arity::Optional => json!({ "anyOf": [one, { "type": "null" }], "description": doc }),
        Arity::Many | Arity::OneOrMany | Arity::Any => {
            let mut forms = vec![
                one.clone(),
                json!({ "type": "array", "minItems": 1, "items": one }),
                json!({ "type": "object", "minProperties": 1, "additionalProperties": one }),
            ];
            if !port.arity.is_required() {
                forms.push(json!({ "type": "null" }));
            }
            json!({ "anyOf": forms, "description": doc })
        }
    }
}

fn field_schema(field: &Field) -> Value {
    let default = match field.need {
        Need::Default(literal) => Some(literal.value()),
        Need::Required | Need::Optional => None,
    };
    let mut alternatives = Vec::new();
    value_schemas(&field.ty, &mut alternatives);
    // A text that is a parameter is a text already.
    if !alternatives
        .iter()
        .any(|a| a["type"] == "string" && a.get("enum").is_none())
        && !matches!(field.ty, FieldType::Source)
    {
        alternatives.push(json!({ "$ref": "#/$defs/parameter" }));
    }
    // A key without a value counts as one that is not given.
    if !matches!(field.need, Need::Required) {
        alternatives.push(json!({ "type": "null" }));
    }
    let mut schema = match alternatives.len() {
        1 => alternatives.remove(0),
        _ => json!({ "anyOf": alternatives }),
    };
    let doc = match &field.ty {
        FieldType::Choice(choices) => {
            let words: Vec<String> = choices
                .iter()
                .map(|c| format!("\n- `{}`: {}", c.word, c.doc))
                .collect();
            format!("{}\n{}", field.doc, words.concat())
        }
        _ => field.doc.to_owned(),
    };
    schema["description"] = doc.into();
    if let Some(default) = default.filter(|d| !d.is_null()) {
        schema["default"] = default;
    }
    schema
}

/// A top-level value that may also be a parameter.
fn scalar_or_parameter(schema: Value, doc: &str, default: Option<Value>) -> Value {
    let mut schema =
        json!({ "anyOf": [schema, { "$ref": "#/$defs/parameter" }], "description": doc });
    if let Some(default) = default {
        schema["default"] = default;
    }
    schema
}

fn value_schemas(ty: &FieldType, out: &mut Vec<Value>) {
    match ty {
        FieldType::Bool => out.push(json!({ "type": "boolean" })),
        FieldType::Integer { min, max } => {
            let mut schema = json!({ "type": "integer" });
            if *min > i64::MIN {
                schema["minimum"] = (*min).into();
            }
            if *max < i64::MAX {
                schema["maximum"] = (*max).into();
            }
            out.push(schema);
        }
        FieldType::Number { min, max, above } => {
            let mut schema = json!({ "type": "number" });
            if min.is_finite() && *min > i64::MIN as f64 {
                schema[if *above {
                    "exclusiveMinimum"
                } else {
                    "minimum"
                }] = number(*min);
            }
            if max.is_finite() && *max < i64::MAX as f64 {
                schema["maximum"] = number(*max);
            }
            out.push(schema);
        }
        FieldType::Text | FieldType::Metric { .. } => {
            out.push(json!({ "type": "string", "minLength": 1 }))
        }
        FieldType::Choice(choices) => {
            let words: Vec<&str> = choices.iter().map(|c| c.word).collect();
            out.push(json!({ "type": "string", "enum": words }));
        }
        FieldType::List { of, min } => {
            out.push(json!({ "type": "array", "minItems": min, "items": item(of) }))
        }
        FieldType::Map { of, .. } => {
            out.push(json!({ "type": "object", "additionalProperties": item(of) }))
        }
        FieldType::Either(types) => types.iter().for_each(|ty| value_schemas(ty, out)),
        FieldType::Source => out.push(json!({ "$ref": "#/$defs/source" })),
        FieldType::Program { .. } => out.push(
            json!({ "type": "array", "minItems": 1, "items": { "type": "string", "minLength": 1 } }),
        ),
        FieldType::Seed => out.push(json!({ "type": "integer", "minimum": 0 })),
    }
}

/// A whole number without a decimal point, so that the schema reads as a person would write it.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        (x as i64).into()
    } else {
        x.into()
    }
}

/// What may stand inside a list or a mapping: parameters too.
fn item(ty: &FieldType) -> Value {
    let mut alternatives = Vec::new();
    value_schemas(ty, &mut alternatives);
    if !alternatives
        .iter()
        .any(|a| a["type"] == "string" && a.get("enum").is_none())
    {
        alternatives.push(json!({ "$ref": "#/$defs/parameter" }));
    }
    match alternatives.len() {
        1 => alternatives.remove(0),
        _ => json!({ "anyOf": alternatives }),
    }
}
