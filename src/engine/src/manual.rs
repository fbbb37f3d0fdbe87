//! The manual of kinds, made from their contracts: as text for the terminal, as Markdown for the page, as JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::artifact::ArtifactType;
use crate::contract::{
    Arity, Class, Contract, Contracts, Field, FieldType, Gives, Need, Output, Pool, Port,
    Repeatable,
};

/// The manual of one kind as plain text, lines of at most `width` characters where words allow it.
pub fn text(contract: &Contract, width: usize) -> String {
    let mut out = format!("{} (version {})\n", contract.kind, contract.version);
    push_wrapped(&mut out, contract.about, "  ", width);
    if !contract.manual.trim().is_empty() {
        out.push('\n');
        push_paragraphs(&mut out, contract.manual, "  ", width);
    }
    section(&mut out, "Inputs", contract.ports, |out, port| {
        let _ = writeln!(out, "  {}  ({})", port.name, port_words(port));
        push_wrapped(out, port.doc, "      ", width);
    });
    section(&mut out, "Parameters", contract.fields, |out, field| {
        let _ = writeln!(
            out,
            "  {}  ({}; {})",
            field.name,
            words(&field.ty),
            need_words(field)
        );
        push_wrapped(out, field.doc, "      ", width);
        for choice in choices(&field.ty) {
            push_wrapped(
                out,
                &format!("{}: {}", choice.word, choice.doc),
                "        ",
                width,
            );
        }
        if let Some(remark) = class_words(field.class) {
            push_wrapped(out, remark, "      ", width);
        }
    });
    section(&mut out, "Outputs", contract.outputs, |out, output| {
        let _ = writeln!(
            out,
            "  {}  ({})",
            output_name(contract, output),
            output_type(output)
        );
        push_wrapped(out, output.doc, "      ", width);
    });
    section(
        &mut out,
        "Preparations",
        contract.preparations,
        |out, preparation| {
            let _ = writeln!(out, "  STAGE/{}", preparation.name);
            push_wrapped(out, &preparation_words(preparation), "      ", width);
        },
    );
    let _ = write!(
        out,
        "\nExample\n{}\nRuns {}.{}\n",
        indented(contract.example, "  "),
        pool_words(contract.pool),
        repeat_words(contract)
    );
    out
}

/// The page of all kinds in Markdown; `docs/kinds.md` is its copy.
pub fn markdown(contracts: Contracts) -> String {
    let mut out = String::from(
        "# Kinds of stages\n\nThis page is made from the contracts in `src/kinds` (`levain kinds --markdown`); a test compares the two.\n\n\
         A stage is a name, a `kind`, and that kind's words. An input takes the name of another stage, or `stage.output`. Every value may be \
         a parameter: `\"${params.name}\"`. `levain kinds KIND` shows the same in a terminal.\n\n| kind | what it does |\n|---|---|\n",
    );
    for contract in contracts.kinds {
        let _ = writeln!(
            out,
            "| [`{0}`](#{0}) | {1} |",
            contract.kind,
            cell(contract.about)
        );
    }
    for contract in contracts.kinds {
        kind_markdown(&mut out, contract);
    }
    out
}

fn kind_markdown(out: &mut String, contract: &Contract) {
    let _ = write!(out, "\n## {}\n\n{}\n\n", contract.kind, contract.about);
    let _ = write!(out, "```yaml\n{}\n```\n\n", contract.example.trim_end());
    if !contract.manual.trim().is_empty() {
        let _ = write!(out, "{}\n\n", contract.manual.trim());
    }
    if !contract.ports.is_empty() {
        out.push_str("| input | takes | |\n|---|---|---|\n");
        for port in contract.ports {
            let _ = writeln!(
                out,
                "| `{}` | {} | {} |",
                port.name,
                cell(&port_words(port)),
                cell(port.doc)
            );
        }
        out.push('\n');
    }
    if !contract.fields.is_empty() {
        out.push_str("| parameter | is | default | |\n|---|---|---|---|\n");
        for field in contract.fields {
            let mut doc = field.doc.to_owned();
            for choice in choices(&field.ty) {
                let _ = write!(doc, " `{}`: {}", choice.word, choice.doc);
            }
            if let Some(remark) = class_words(field.class) {
                let _ = write!(doc, " *{remark}*");
            }
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} |",
                field.name,
                cell(&words(&field.ty)),
                cell(&need_markdown(field)),
                cell(&doc)
            );
        }
        out.push('\n');
    }
    if !contract.outputs.is_empty() {
        out.push_str("| output | is | |\n|---|---|---|\n");
        for output in contract.outputs {
            let _ = writeln!(
                out,
                "| `{}` | {} | {} |",
                output_name(contract, output),
                output_type(output),
                cell(output.doc)
            );
        }
        out.push('\n');
    }
    for preparation in contract.preparations {
        let _ = write!(
            out,
            "Preparation `STAGE/{}`: {}\n\n",
            preparation.name,
            preparation_words(preparation)
        );
    }
    let _ = writeln!(
        out,
        "Version {}. Runs {}.{}",
        contract.version,
        pool_words(contract.pool),
        repeat_words(contract)
    );
}

/// A contract for programs.
pub fn to_json(contract: &Contract) -> Value {
    let ports: Vec<Value> = contract
        .ports
        .iter()
        .map(|p| {
            let accepts: Vec<&str> = p.accepts.iter().map(|a| a.name()).collect();
            json!({ "name": p.name, "accepts": accepts, "arity": arity_word(p.arity), "layouts": p.layouts, "doc": p.doc })
        })
        .collect();
    let fields: Vec<Value> = contract
        .fields
        .iter()
        .map(|f| {
            let default = match f.need {
                Need::Default(literal) => literal.value(),
                Need::Required | Need::Optional => Value::Null,
            };
            let words_of: Vec<&str> = choices(&f.ty).iter().map(|c| c.word).collect();
            json!({
                "name": f.name,
                "type": words(&f.ty),
                "required": matches!(f.need, Need::Required) && !matches!(f.ty, FieldType::Seed),
                "default": default,
                "choices": words_of,
                "class": class_word(f.class),
                "extendable": f.extendable,
                "doc": f.doc,
            })
        })
        .collect();
    let outputs: Vec<Value> = contract
        .outputs
        .iter()
        .map(|o| match o.gives {
            Gives::New(artifact) => {
                json!({ "name": o.name, "type": artifact.name(), "doc": o.doc })
            }
            Gives::Same(port) => json!({ "name": o.name, "same": port, "doc": o.doc }),
        })
        .collect();
    let preparations: Vec<Value> = contract
        .preparations
        .iter()
        .map(|p| json!({ "name": p.name, "kind": p.kind, "fields": p.fields, "replaces": p.replaces }))
        .collect();
    json!({
        "kind": contract.kind,
        "version": contract.version,
        "about": contract.about,
        "manual": contract.manual,
        "example": contract.example,
        "runs": match contract.pool { Pool::Cpu => "levain", Pool::Torch => "worker" },
        "deterministic": contract.repeatable == Repeatable::Deterministic,
        "inputs": ports,
        "parameters": fields,
        "outputs": outputs,
        "preparations": preparations,
    })
}

fn section<T>(out: &mut String, title: &str, items: &[T], write: impl Fn(&mut String, &T)) {
    if items.is_empty() {
        return;
    }
    let _ = write!(out, "\n{title}\n");
    items.iter().for_each(|item| write(out, item));
}

fn output_name(contract: &Contract, output: &Output) -> String {
    let first = contract
        .outputs
        .first()
        .is_some_and(|o| o.name == output.name);
    if first {
        format!("STAGE or STAGE.{}", output.name)
    } else {
        format!("STAGE.{}", output.name)
    }
}

/// An output's type in words.
fn output_type(output: &Output) -> String {
    match output.gives {
        Gives::New(artifact) => artifact.to_string(),
        Gives::Same(port) => format!("what `{port}` holds"),
    }
}

fn port_words(port: &Port) -> String {
    let types: Vec<&str> = port.accepts.iter().map(|a| a.name()).collect();
    let types = match port.accepts == ArtifactType::ALL {
        true => "anything".to_owned(),
        false => types.join(" or "),
    };
    let mut text = match port.arity {
        Arity::One => types,
        Arity::Optional => format!("{types}; may be left out"),
        Arity::Many | Arity::OneOrMany | Arity::Any => {
            let mut words =
                format!("one or more of {types}: a name, a list, or a mapping from names");
            if !port.arity.is_required() {
                words += "; may be left out";
            }
            words
        }
    };
    if !port.layouts.is_empty() {
        let _ = write!(text, "; {} rows", port.layouts.join(" or "));
    }
    text
}

fn arity_word(arity: Arity) -> &'static str {
    match arity {
        Arity::One => "one",
        Arity::Optional => "optional",
        Arity::Many => "many",
        Arity::OneOrMany => "one or many",
        Arity::Any => "any number",
    }
}

fn class_word(class: Class) -> &'static str {
    match class {
        Class::Semantic => "semantic",
        Class::Numeric => "numeric",
        Class::Execution => "execution",
    }
}

/// What a field's class means for the cache, where it is not the usual.
fn class_words(class: Class) -> Option<&'static str> {
    match class {
        Class::Semantic => None,
        Class::Numeric => {
            Some("Changes the last bits at most: not part of the key, so nothing runs again.")
        }
        Class::Execution => Some("Changes no byte of the result: not part of the key."),
    }
}

fn pool_words(pool: Pool) -> &'static str {
    match pool {
        Pool::Cpu => "inside `levain`, without libtorch",
        Pool::Torch => "in the worker",
    }
}

fn repeat_words(contract: &Contract) -> &'static str {
    match contract.repeatable {
        Repeatable::Deterministic => "",
        Repeatable::Recorded => {
            " Its answers are recorded: they are kept by `levain cache gc`, and only `--force` asks again."
        }
    }
}

fn preparation_words(preparation: &crate::contract::Preparation) -> String {
    let from: Vec<String> = preparation
        .inputs
        .iter()
        .map(|(_, from)| match from {
            crate::contract::From::Port(port) => format!("`{port}`"),
            crate::contract::From::TokenizerOf(port) => format!("the tokenizer of `{port}`"),
            crate::contract::From::PortOr(port, other) => format!("`{port}` (or `{other}`)"),
            crate::contract::From::Preparation(name) => format!("`{name}`"),
        })
        .collect();
    let fields = match preparation.fields {
        [] => String::new(),
        fields => format!(
            " with {}",
            fields
                .iter()
                .map(|f| format!("`{f}`"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    format!(
        "made of {}{fields}; it has a key of its own, and is not made again when other parameters change.",
        from.join(" and ")
    )
}

fn need_words(field: &Field) -> String {
    match (field.need, &field.ty) {
        (_, FieldType::Seed) => "the recipe's `seed` when not given".to_owned(),
        (Need::Required, _) => "required".to_owned(),
        (Need::Optional, _) => "may be left out".to_owned(),
        (Need::Default(literal), _) => match literal.value() {
            Value::Null => "may be left out".to_owned(),
            value => format!("default {}", plain(&value)),
        },
    }
}

fn need_markdown(field: &Field) -> String {
    match (field.need, &field.ty) {
        (_, FieldType::Seed) => "the recipe's".to_owned(),
        (Need::Required, _) => "**required**".to_owned(),
        (Need::Optional, _) => "none".to_owned(),
        (Need::Default(literal), _) => match literal.value() {
            Value::Null => "none".to_owned(),
            value => format!("`{}`", plain(&value)),
        },
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) => match n.as_f64() {
            Some(x) if n.is_f64() && x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e7) => {
                format!("{x:e}")
            }
            _ => n.to_string(),
        },
        other => other.to_string(),
    }
}

/// A type in words, with its range.
fn words(ty: &FieldType) -> String {
    match ty {
        FieldType::Bool => "true or false".to_owned(),
        FieldType::Integer { min, max } => {
            format!("whole number{}", range(*min as f64, *max as f64, false))
        }
        FieldType::Number { min, max, above } => format!("number{}", range(*min, *max, *above)),
        FieldType::Text => "text".to_owned(),
        FieldType::Choice(choices) => choices
            .iter()
            .map(|c| c.word)
            .collect::<Vec<_>>()
            .join(" | "),
        FieldType::List { of, min: 0 } => format!("list of {}", words(of)),
        FieldType::List { of, .. } => format!("non-empty list of {}", words(of)),
        FieldType::Map { of, .. } => format!("mapping from names to {}", words(of)),
        FieldType::Either(types) => types.iter().map(words).collect::<Vec<_>>().join(", or "),
        FieldType::Source => {
            "source: a path, a list of paths, `hf://…`, `https://…`, `pypi:…`".to_owned()
        }
        FieldType::Program { .. } => {
            "list of words: a program and its arguments; runs with `--allow-programs` only"
                .to_owned()
        }
        FieldType::Seed => "whole number, at least 0".to_owned(),
        FieldType::Metric { of, .. } => format!("name of a metric in `{of}`"),
    }
}

fn range(min: f64, max: f64, above: bool) -> String {
    let low = min.is_finite() && min > i64::MIN as f64;
    let high = max.is_finite() && max < i64::MAX as f64;
    match (low, high, above) {
        (true, true, false) => format!(", {min} to {max}"),
        (true, true, true) => format!(", above {min}, at most {max}"),
        (true, false, false) => format!(", at least {min}"),
        (true, false, true) => format!(", above {min}"),
        (false, true, _) => format!(", at most {max}"),
        (false, false, _) => String::new(),
    }
}

/// The words of every choice inside `ty`.
fn choices(ty: &FieldType) -> Vec<&'static crate::contract::Choice> {
    match ty {
        FieldType::Choice(choices) => choices.iter().collect(),
        FieldType::Either(types) => types.iter().flat_map(choices).collect(),
        FieldType::List { of, .. } | FieldType::Map { of, .. } => choices(of),
        _ => Vec::new(),
    }
}

/// A text as one cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn indented(text: &str, indent: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| {
            if line.is_empty() {
                "\n".to_owned()
            } else {
                format!("{indent}{line}\n")
            }
        })
        .collect()
}

/// Paragraphs are wrapped; lines that are indented or begin with a sign (lists, formulas, tables) stay as they are.
fn push_paragraphs(out: &mut String, text: &str, indent: &str, width: usize) {
    for (index, paragraph) in text.trim().split("\n\n").enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let verbatim = paragraph.lines().any(|l| {
            [" ", "- ", "|", "```", "$$"]
                .iter()
                .any(|sign| l.starts_with(sign))
        });
        if verbatim {
            out.push_str(&indented(paragraph, indent));
        } else {
            push_wrapped(out, paragraph, indent, width);
        }
    }
}

fn push_wrapped(out: &mut String, text: &str, indent: &str, width: usize) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column == 0 {
            out.push_str(indent);
            column = indent.len();
        } else if column + 1 + length > width {
            out.push('\n');
            out.push_str(indent);
            column = indent.len();
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    if column > 0 {
        out.push('\n');
    }
}
